"""The figures: what each says, and what it is to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Reach:
    """What a figure is to be: at least a limit, or at most."""

    sign: Literal["≥", "≤"]
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a value is there."""
        return value >= self.limit if self.sign == "≥" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that the benchmark finds."""

    name: str
    what: str
    reach: Reach | None
    unit: str = ""
    also: Mapping[str, Reach] = field(default_factory=dict)
    """What details of the finding are to be as well."""


FIGURES: Final = {
    figure.name: figure
    for figure in (
        Figure(
            "overhead_vs_handwritten",
            "turns/s of one worker, instant executor, over a hand-written loop with the same guarantees a turn",
            Reach("≥", 1.3),
        ),
        Figure("overhead_vs_unsafe", "the same over that loop without lock and history", Reach("≥", 1.1)),
        Figure(
            "vs_agno_turns",
            "turns/s with the same Agno Team and instant model, over a hand-written consumer with AsyncPostgresDb",
            Reach("≥", 5),
        ),
        Figure("flat_10000", "median turn in a session of 10,000 runs over one of 10", Reach("≤", 1.2)),
        Figure("vs_agno_flat_1000", "median turn after 1,000 runs of the session, Agno's over ours", Reach("≥", 20)),
        Figure(
            "vs_agno_handoff",
            "until five runs of a session with a 20 ms model are done, Agno's durable queue over ours",
            Reach("≥", 10),
        ),
        Figure(
            "in_flight",
            "turns in flight at once in one process, each asleep 5 s",
            Reach("≥", 5_000),
            also={"connections": Reach("≤", 4), "peak_memory_mb": Reach("≤", 400)},
        ),
        Figure("in_flight_model", "the same through a Team and a model over HTTP that answers after 5 s", None),
        Figure(
            "memory_per_turn",
            "memory that a Team's turn takes while it waits for its model, between 256 and 1,000 at once",
            None,
            unit="KiB",
        ),
        Figure("handoff", "turns within one single session, instant executor", Reach("≥", 250), unit="turns/s"),
        Figure(
            "latency_vs_handwritten",
            "median request to reply of a lone request, over the hand-written loop's",
            Reach("≤", 1.2),
        ),
        Figure(
            "cancel_latency",
            "median time from a cancel to the reply CANCELLED of the run that it stops, over a lone round trip",
            Reach("≤", 2),
        ),
        Figure(
            "interrupt_latency",
            "median time from a request that interrupts a running one to its own reply, over a lone round trip",
            Reach("≤", 3),
        ),
        Figure(
            "stream_latency",
            "median time until the first piece of a Team's answer is with its reader, over that to its unwatched reply",
            Reach("≤", 1),
        ),
        Figure("scale_out_4", "turns/s of 4 workers over 1, one-second turns, 50 at a time each", Reach("≥", 3.5)),
        Figure(
            "rebalance_gap",
            "longest time that a partition was idle when a worker joined, left, was killed, was frozen",
            None,
            unit="s",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one side of a comparison, in order."""

    side: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """What goes into the figure."""
        return median(self.values)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found for a figure."""

    name: str
    value: float
    measured: Sequence[Measured]
    """What the value was made of, and what was measured beside it."""
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else is to be told."""

    @property
    def figure(self) -> Figure:
        """What the value says."""
        return FIGURES[self.name]

    @property
    def is_reached(self) -> bool | None:
        """Whether it is what it is to be; None where it is only reported."""
        if self.figure.reach is None:
            return None
        return self.figure.reach.holds(self.value) and not self.missed()

    def missed(self) -> list[str]:
        """The details that are not what they are to be."""
        return [name for name, reach in self.figure.also.items() if not reach.holds(self._number(name))]

    def _number(self, name: str) -> float:
        value = self.details[name]
        assert isinstance(value, int | float)
        return value


def ratio(name: str, first: Measured, second: Measured, *beside: Measured) -> Finding:
    """The median of the first side over that of the second."""
    return Finding(name, first.median / second.median, [first, second, *beside])
