"""A worker's metrics: those of the table, as the table says, and never without bound."""

from __future__ import annotations

import inspect
import re
import timeit
from typing import Any

import pytest

from schemas.errors import DEAD_LETTERED, ErrorCode
from schemas.ids import SessionType, Target
from schemas.replies import RunStatus
from tests.support.metrics import table
from tests.support.scrapes import Scrape
from worker.executors.model_calls import ModelCall
from worker.fleet.readings import FleetReading
from worker.measures import CommitRefusal, Measures, Tried
from worker.operations.gauges import Gauges, Reading
from worker.operations.health import Condition
from worker.operations.metrics import MOST_MODELS, OTHER, Metrics

CAPITAL = Target(type=SessionType.TEAM, id="capital")
READING = Reading(
    condition=Condition(lanes=True, room=True, broker=False, publishing=True, consuming=False, standing_by=True),
    lanes={0: True, 1: False},
    executing=3,
    waiting=4,
    oldest_seconds=5.5,
    partitions=6,
    fleet=FleetReading(workers=2, oldest_turn_seconds=7.5, lock_wait_seconds=0.0, orphan_steps=8),
)
WHAT_HAPPENS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "redelivered": ((), {}),
    "answered": ((CAPITAL, RunStatus.ERROR, ErrorCode.MODEL_ERROR), {}),
    "executed": ((CAPITAL,), {"seconds": 0.2, "queued_seconds": 0.1}),
    "claimed": ((0.002,), {}),
    "committed": ((0.002,), {}),
    "replied": ((0.002,), {}),
    "replayed": ((), {}),
    "steps_resumed": ((2,), {}),
    "commit_refused": ((CommitRefusal.STALE,), {}),
    "retried": ((Tried.CLAIM,), {}),
    "dead_lettered": ((ErrorCode.MISROUTED,), {}),
    "batched": (("claim", 3), {}),
    "model_called": ((CAPITAL, ModelCall("gpt-5", 10, 5, 0.25)), {}),
    "loop_lagged": ((0.002,), {}),
}


def metrics() -> Metrics:
    made = Metrics([CAPITAL])
    made.registry.register(Gauges(lambda: READING, version="1.2.3", worker="host:7"))
    return made


def happened(made: Measures) -> None:
    for name, (given, named) in WHAT_HAPPENS.items():
        getattr(made, name)(*given, **named)


def test_what_is_told_is_what_the_table_has_and_the_reverse() -> None:
    made = metrics()
    happened(made)
    told = {}
    for family in Scrape.from_metrics(made).families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [frozenset(sample.labels) - {"le"} for sample in family.samples]
        assert len(set(labels)) == 1, name
        told[name] = (family.type, labels[0])
    ours = {name: (row.type, row.labels) for name, row in table().items() if name.startswith("teamturn_")}
    assert told == ours


def test_the_buckets_are_those_of_the_table() -> None:
    made = metrics()
    happened(made)
    scrape = Scrape.from_metrics(made)
    for row in [row for row in table().values() if row.type == "histogram"]:
        first, last = re.findall(r"([\d.]+) to ([\d.]+)$", row.meaning)[0]
        bounds = [
            float(sample.labels["le"])
            for family in scrape.families
            for sample in family.samples
            if sample.name == f"{row.name}_bucket"
        ]
        assert (bounds[0], bounds[-2], bounds[-1]) == (float(first), float(last), float("inf")), row.name


def test_everything_that_can_happen_is_told() -> None:
    methods = {name for name, _ in inspect.getmembers(Measures, inspect.isfunction)}
    assert methods == WHAT_HAPPENS.keys()
    for name, (given, named) in WHAT_HAPPENS.items():
        made = metrics()
        before = made.page().body
        getattr(made, name)(*given, **named)
        assert made.page().body != before, name
        getattr(Measures(), name)(*given, **named)  # what has nobody to tell takes the same


def test_counters_of_faults_begin_at_0_for_all_that_can_happen() -> None:
    scrape = Scrape.from_metrics(metrics())
    known: dict[str, set[str]] = {
        "teamturn_commits_refused_total": set(CommitRefusal),
        "teamturn_retries_total": set(Tried),
        "teamturn_dead_letters_total": {*DEAD_LETTERED, ErrorCode.ATTEMPTS_EXHAUSTED},
    }
    for name, values in known.items():
        assert [[*scrape.values(name, **{label(name): value})] for value in values] == [[0]] * len(values)
    for name in ("teamturn_redeliveries_total", "teamturn_replays_total", "teamturn_resumed_steps_total"):
        assert [*scrape.values(name)] == [0]


def label(name: str) -> str:
    (one,) = table()[name].labels
    return one


def test_gauges_are_as_the_worker_is() -> None:
    scrape = Scrape.from_metrics(metrics())
    assert scrape.by("part", "teamturn_ready") == {"lanes": 1, "room": 1, "publishing": 1, "taking": 1}
    assert [*scrape.values("teamturn_ready", part="broker")] == [0]
    assert ([*scrape.values("teamturn_lane_up", lane="0")], [*scrape.values("teamturn_lane_up", lane="1")]) == (
        [1],
        [0],
    )
    assert [*scrape.values("teamturn_build_info", version="1.2.3", worker="host:7")] == [1]
    told = {name: scrape.sum(f"teamturn_{name}") for name in ("turns_in_flight", "mailbox_requests", "fleet_workers")}
    assert told == {"turns_in_flight": 3, "mailbox_requests": 4, "fleet_workers": 2}


def test_what_is_not_known_of_the_fleet_is_not_told() -> None:
    made = Metrics([])
    reading = Reading(READING.condition, {}, 0, 0, 0.0, 0, FleetReading())
    made.registry.register(Gauges(lambda: reading, version="1", worker="host:7"))
    scrape = Scrape.from_metrics(made)
    assert [*scrape.values("teamturn_fleet_workers"), *scrape.values("teamturn_fleet_orphan_steps")] == []
    assert [*scrape.values("teamturn_partitions_owned")] == [0]


def test_a_thousand_made_up_targets_and_models_are_a_bounded_number_of_series() -> None:
    made = metrics()
    for number in range(1_000):
        stranger = Target(type=SessionType.TEAM, id=f"made-up-{number}")
        made.answered(stranger, RunStatus.REJECTED, ErrorCode.UNKNOWN_TARGET)
        made.model_called(CAPITAL, ModelCall(f"model-{number}", 1, 1, 0.5))
    scrape = Scrape.from_metrics(made)
    assert scrape.by("target", "teamturn_turns_total") == {OTHER: 1_000}
    tokens = scrape.by("model", "teamturn_tokens_total", direction="input")
    assert len(tokens) == MOST_MODELS + 1
    assert tokens[OTHER] == 1_000 - MOST_MODELS
    assert scrape.sum("teamturn_cost_dollars_total", model=OTHER) == 0.5 * (1_000 - MOST_MODELS)
    assert scrape.series < 500


def test_what_a_provider_names_can_not_break_the_page() -> None:
    made = metrics()
    for name in ('a"b', "a\nteamturn_turns_total 5", "a\\", "\ud800", "x" * 100_000, None):
        made.model_called(CAPITAL, ModelCall(name, -5, 1))
    scrape = Scrape.from_metrics(made)
    assert scrape.sum("teamturn_tokens_total", direction="output") == 6
    assert scrape.sum("teamturn_turns_total") == 0
    assert len(made.page().body) < 20_000


def test_two_workers_in_a_process_count_apart() -> None:
    one, other = metrics(), metrics()
    one.replayed()
    assert Scrape.from_metrics(one).sum("teamturn_replays_total") == 1
    assert Scrape.from_metrics(other).sum("teamturn_replays_total") == 0


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0.0, "0.01"), (0.01, "0.01"), (0.0101, "0.025"), (600.0, "600.0"), (601.0, "+Inf"), (1e9, "+Inf")],
)
def test_a_value_is_in_each_bucket_from_the_first_that_it_does_not_exceed(value: float, bucket: str) -> None:
    made = metrics()
    made.executed(CAPITAL, seconds=value, queued_seconds=0)
    made.executed(CAPITAL, seconds=1e9, queued_seconds=0)
    scrape = Scrape.from_metrics(made)
    counted = scrape.by("le", "teamturn_turn_seconds_bucket", target="team.capital")
    least = min(counted, key=float)
    assert (least, counted[least], counted["+Inf"]) == (bucket, 2 if bucket == "+Inf" else 1, 2)
    assert scrape.sum("teamturn_turn_seconds_count") == 2
    assert scrape.sum("teamturn_turn_seconds_sum") == value + 1e9


@pytest.mark.parametrize(("calls", "most_seconds"), [(2_000, 0.2)])
def test_what_a_turn_tells_costs_it_little(calls: int, most_seconds: float) -> None:
    """About 4 microseconds a turn on this project's machine: here only that it is not far from that."""
    made = metrics()

    def turn() -> None:
        made.claimed(0.001)
        for statement in ("claim", "commit", "unlock"):
            made.batched(statement, 4)
        made.committed(0.001)
        made.answered(CAPITAL, RunStatus.COMPLETED, None)
        made.executed(CAPITAL, seconds=0.2, queued_seconds=0.1)
        made.steps_resumed(0)
        made.replied(0.001)

    assert min(timeit.repeat(turn, number=calls, repeat=5)) < most_seconds
