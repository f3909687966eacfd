"""The chart of the README: a panel a comparison, a bar a side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.benchmarks.figures import Finding, Measured

_OURS, _THEIRS = "#2a6f97", "#b0b7bf"
_PEERS = frozenset({"handwritten", "unsafe", "agno"})
_COLUMNS = 2
_WHOLE_NUMBERS = 100
_MOST_ROUNDS = 5
"""Beyond that they are single requests, whose extremes say nothing."""


def draw(findings: Sequence[Finding], path: Path) -> None:
    """Draw what was compared; the file's name says whether as PNG or SVG. Bars are medians, lines all rounds."""
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "teamturn"  # the same figures make the same file
    compared = [(finding, sides) for finding in findings if len(sides := _sides(finding)) > 1]
    rows = max(-(-len(compared) // _COLUMNS), 1)
    picture, panels = plt.subplots(rows, _COLUMNS, figsize=(11, 1.7 * rows), squeeze=False, layout="constrained")
    for panel in panels.flat:
        panel.axis("off")
    for panel, (finding, sides) in zip(panels.flat, compared, strict=False):
        _panel(panel, finding, sides)
    picture.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(picture)


def _sides(finding: Finding) -> list[Measured]:
    """Those that the value is made of: of one unit."""
    return [one for one in finding.measured if one.unit == finding.measured[0].unit]


def _panel(panel: Any, finding: Finding, sides: Sequence[Measured]) -> None:
    names, medians = [one.side for one in sides], [one.median for one in sides]
    spread = [
        [middle - min(one.values) for one, middle in zip(sides, medians, strict=True)],
        [max(one.values) - middle for one, middle in zip(sides, medians, strict=True)],
    ]
    few_rounds = all(len(one.values) <= _MOST_ROUNDS for one in sides)
    colours = [_THEIRS if one.side in _PEERS else _OURS for one in sides]
    bars = panel.barh(names, medians, color=colours, xerr=spread if few_rounds else None, ecolor="#555555")
    panel.bar_label(bars, [_number(middle) for middle in medians], padding=4)
    panel.set_xlim(right=1.15 * max(middle + over for middle, over in zip(medians, spread[1], strict=True)))
    panel.axis("on")
    panel.invert_yaxis()
    panel.set_xlabel(sides[0].unit)
    panel.set_title(f"{finding.name}: {_number(finding.value)}", loc="left", fontsize="medium")
    panel.spines[["top", "right"]].set_visible(False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= _WHOLE_NUMBERS else f"{value:.3g}"
