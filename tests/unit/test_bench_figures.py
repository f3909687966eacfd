"""How the benchmark judges what it found, and how it says it."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.report import as_json, lines


def in_flight(turns: float, *, connections: int = 2, memory: float = 300.0) -> Finding:
    details = {"connections": connections, "peak_memory_mb": memory}
    return Finding("in_flight", turns, [Measured("teamturn", "turns at once", [turns])], details)


@pytest.mark.parametrize(
    ("finding", "reached"),
    [
        (Finding("handoff", 250, []), True),
        (Finding("handoff", 249.9, []), False),
        (Finding("flat_10000", 1.2, []), True),
        (Finding("flat_10000", 1.21, []), False),
        (Finding("rebalance_gap", 15, []), None),
        (in_flight(5_000), True),
        (in_flight(6_000, connections=5), False),
        (in_flight(6_000, memory=401), False),
    ],
)
def test_a_figure_is_reached_when_its_value_and_all_that_belongs_to_it_are(
    finding: Finding, *, reached: bool | None
) -> None:
    assert finding.is_reached is reached


def test_what_was_missed_beside_the_value_is_named() -> None:
    assert in_flight(6_000, connections=5, memory=401).missed() == ["connections", "peak_memory_mb"]


def test_a_comparison_is_the_ratio_of_the_medians() -> None:
    ours, theirs = Measured("teamturn", "turns/s", [1, 30, 20]), Measured("handwritten", "turns/s", [10, 9, 500])
    assert ratio("overhead_vs_handwritten", ours, theirs).value == 2


def test_a_figure_is_a_line_for_machines() -> None:
    findings = [Finding("handoff", 412.3456, []), Finding("flat_10000", 1.01234, []), in_flight(12_345)]
    assert lines(findings) == ["handoff: 412.3", "flat_10000: 1.012", "in_flight: 12345"]


def test_the_json_has_every_round() -> None:
    ours, theirs = Measured("teamturn", "turns/s", [3, 1, 2]), Measured("handwritten", "turns/s", [1, 1, 1])
    written = as_json([ratio("overhead_vs_handwritten", ours, theirs)], {"handoff": "it broke"}, {"cpus": 2})
    figures = written["figures"]
    assert isinstance(figures, dict)
    figure = figures["overhead_vs_handwritten"]
    assert isinstance(figure, dict)
    assert figure["measured"] == [
        {"side": "teamturn", "unit": "turns/s", "median": 2, "rounds": [3, 1, 2]},
        {"side": "handwritten", "unit": "turns/s", "median": 1, "rounds": [1, 1, 1]},
    ]
