"""What was found, as people and as machines read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.figures import Finding

_WHOLE_NUMBERS = 100
"""From there on, what is behind the point says nothing."""
_VERDICTS = {True: "[green]reached[/]", False: "[red]not reached[/]", None: "reported"}


def table(findings: Sequence[Finding], failures: Mapping[str, str]) -> Table:
    """The figures, with what they are to reach and whether they do."""
    made = Table("figure", "value", "to reach", "", pad_edge=False)
    for finding in findings:
        reach = finding.figure.reach
        verdict = _VERDICTS[finding.is_reached]
        if finding.missed():
            verdict += f": {', '.join(finding.missed())}"
        made.add_row(finding.name, _shown(finding), f"{reach.sign} {reach.limit:,g}" if reach else "", verdict)
    for name, reason in failures.items():
        made.add_row(name, "-", "", f"[red]failed[/]: {escape(reason)}")
    return made


def _shown(finding: Finding) -> str:
    digits = 0 if finding.value >= _WHOLE_NUMBERS else 2
    return f"{finding.value:,.{digits}f} {finding.figure.unit}".rstrip()


def show_details(console: Console, findings: Sequence[Finding]) -> None:
    """Print what the values were made of, and what was found beside them."""
    for finding in findings:
        sides = [f"{one.side} {one.median:,.4g} {one.unit}" for one in finding.measured]
        told = [f"{name} {value}" for name, value in finding.details.items()]
        console.print(f"{finding.name}: {', '.join([*sides, *told])}", markup=False, soft_wrap=True)


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line a figure, `name: value`, for machines."""
    return [f"{finding.name}: {_plain(finding.value)}" for finding in findings]


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= _WHOLE_NUMBERS * 10 else f"{value:.4g}"


def as_json(
    findings: Sequence[Finding], failures: Mapping[str, str], machine: Mapping[str, JsonValue]
) -> Mapping[str, JsonValue]:
    """All of it, with every round."""
    return {
        "figures": {finding.name: _figure(finding) for finding in findings},
        "failures": dict(failures),
        "machine": dict(machine),
    }


def _figure(finding: Finding) -> JsonValue:
    reach = finding.figure.reach
    return {
        "value": finding.value,
        "unit": finding.figure.unit,
        "what": finding.figure.what,
        "reach": None if reach is None else asdict(reach),
        "reached": finding.is_reached,
        "details": dict(finding.details),
        "measured": [
            {"side": one.side, "unit": one.unit, "median": one.median, "rounds": list(one.values)}
            for one in finding.measured
        ],
    }


def write_json(path: Path, content: Mapping[str, JsonValue]) -> None:
    """Write it, for programs and for who wants to look closer."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
