"""The table of metrics in deploy/grafana/README.md, and what queries take from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import promql_parser

from tests.support.manifests import DEPLOY

GRAFANA: Final = DEPLOY / "grafana"
_ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|([^|]+)\|$", re.MULTILINE)
_SCRAPED: Final = frozenset({"job", "instance"})
# The least value of a counter is what a series has begun with.
_RATES: Final = frozenset({"rate", "increase", "min_over_time"})


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name: str
    type: str
    labels: frozenset[str]
    meaning: str

    @property
    def series(self) -> frozenset[str]:
        """The names under which Prometheus has it."""
        ends = ("_bucket", "_sum", "_count") if self.type == "histogram" else ("",)
        return frozenset(f"{self.name}{end}" for end in ends)


def table() -> dict[str, Metric]:
    """All metrics, by name."""
    rows = [
        Metric(name, kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning.strip())
        for name, kind, labels, meaning in _ROW.findall((GRAFANA / "README.md").read_text())
    ]
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


@dataclass(frozen=True)
class Read:
    """What a query reads of one metric."""

    series: str
    labels: frozenset[str]
    values: frozenset[tuple[str, str]]
    """The labels that it compares with one value, and this."""
    as_rate: bool


def reads(query: str) -> list[Read]:
    """What a query reads. Raises ValueError for what is no PromQL."""
    return list(_reads(promql_parser.parse(query), as_rate=False))


def grouped_by(query: str) -> frozenset[str]:
    """The labels that a query's sums and other aggregations keep."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return frozenset(found)


def _reads(node: object, *, as_rate: bool) -> Iterator[Read]:
    match node:
        case promql_parser.VectorSelector():
            compared = list(node.matchers.matchers)
            equal = frozenset((one.name, one.value) for one in compared if one.op == promql_parser.MatchOp.Equal)
            yield Read(str(node.name), frozenset(one.name for one in compared), equal, as_rate)
        case promql_parser.MatrixSelector():
            yield from _reads(node.vector_selector, as_rate=as_rate)
        case promql_parser.Call():
            for argument in node.args:
                yield from _reads(argument, as_rate=node.func.name in _RATES)
        case promql_parser.BinaryExpr():
            yield from _reads(node.lhs, as_rate=as_rate)
            yield from _reads(node.rhs, as_rate=as_rate)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _reads(node.expr, as_rate=as_rate)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise AssertionError(f"not thought of: {node!r}")


def check(query: str, known: dict[str, Metric]) -> None:
    """Raise AssertionError if a query reads what the table does not have, or a counter as it is, or a gauge's rate."""
    by_series = {series: metric for metric in known.values() for series in metric.series}
    kept = grouped_by(query)
    for read in reads(query):
        assert read.series in by_series, f"{read.series} is not in the table"
        metric = by_series[read.series]
        there = metric.labels | _SCRAPED | ({"le"} if read.series.endswith("_bucket") else frozenset())
        assert read.labels <= there, f"{read.series} has no label {set(read.labels - there)}"
        assert kept - _SCRAPED <= there, f"{read.series} has no label {set(kept - there)}"
        assert read.as_rate == (metric.type != "gauge"), f"{read.series} is a {metric.type}"
