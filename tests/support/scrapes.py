"""A page of metrics as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from worker.operations.metrics import Metrics


@dataclass(frozen=True)
class Scrape:
    """One page."""

    families: tuple[Family, ...]

    @classmethod
    def of(cls, page: str) -> Scrape:
        return cls(tuple(text_string_to_metric_families(page)))

    @classmethod
    def from_metrics(cls, metrics: Metrics) -> Scrape:
        return cls.of(metrics.page().body.decode())

    @property
    def series(self) -> int:
        return sum(len(family.samples) for family in self.families)

    def values(self, name: str, **labels: str) -> Iterator[float]:
        """The values of all series of a name that have these labels."""
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.value

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> Mapping[str, float]:
        """The sums of a name's series, by the values of one label; those that are 0 left out."""
        found: dict[str, float] = {}
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items() and sample.value:
                    found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found
