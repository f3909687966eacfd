"""Gauges: how a worker is when it is scraped, and how it last found its fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from worker.fleet.readings import FleetReading
from worker.operations.health import Condition


@dataclass(frozen=True, slots=True)
class Reading:
    """How a worker is now."""

    condition: Condition
    lanes: Mapping[int, bool]
    """Whether each lane has a connection, by its number."""
    executing: int
    """Turns that are executed."""
    waiting: int
    """Requests that are here, and of which no attempt was begun here."""
    oldest_seconds: float
    """How long the oldest request is here that is not acknowledged; 0: there is none."""
    partitions: int
    """Request queues that are consumed, those without a slot not counted."""
    fleet: FleetReading
    """As it was when it was last looked at."""


_PLAIN: Final[Mapping[str, tuple[str, Callable[[Reading], float | None]]]] = {
    "teamturn_turns_in_flight": ("Turns that are executed.", lambda now: now.executing),
    "teamturn_mailbox_requests": ("Requests held, and not started.", lambda now: now.waiting),
    "teamturn_oldest_request_seconds": ("How long the oldest request is held.", lambda now: now.oldest_seconds),
    "teamturn_partitions_owned": ("Request queues that are consumed.", lambda now: now.partitions),
    "teamturn_fleet_workers": ("Live workers of the prefix.", lambda now: now.fleet.workers),
    "teamturn_fleet_oldest_turn_seconds": (
        "Since when the oldest turn that was started is unfinished.",
        lambda now: now.fleet.oldest_turn_seconds,
    ),
    "teamturn_fleet_lock_wait_seconds": (
        "The longest that a connection of the database has waited for a lock.",
        lambda now: now.fleet.lock_wait_seconds,
    ),
    "teamturn_fleet_orphan_steps": ("Journal rows of no run.", lambda now: now.fleet.orphan_steps),
}
"""Gauges without labels: what each means, and its value; None: it is not known, and not told."""


class Gauges(Collector):
    """Tells the gauges of one worker, each time as they are."""

    def __init__(self, read: Callable[[], Reading], *, version: str, worker: str) -> None:
        """`read` is asked once for each scrape; `worker` is what its fleet calls it."""
        self._read = read
        self._info = (version, worker)

    @override
    def collect(self) -> Iterator[Metric]:
        now = self._read()
        for name, (meaning, value_of) in _PLAIN.items():
            gauge = GaugeMetricFamily(name, meaning)
            if (value := value_of(now)) is not None:
                gauge.add_metric([], value)
            yield gauge
        yield _by_label("teamturn_ready", "Whether a part of the worker is ready.", "part", now.condition.parts)
        lanes = {str(number): alive for number, alive in now.lanes.items()}
        yield _by_label("teamturn_lane_up", "Whether a lane has its connection.", "lane", lanes)
        info = GaugeMetricFamily(
            "teamturn_build_info", "The worker's version, and its name in the fleet.", labels=["version", "worker"]
        )
        info.add_metric(self._info, 1.0)
        yield info


def _by_label(name: str, meaning: str, label: str, values: Mapping[str, bool]) -> Metric:
    gauge = GaugeMetricFamily(name, meaning, labels=[label])
    for value, holds in values.items():
        gauge.add_metric([value], float(holds))
    return gauge
