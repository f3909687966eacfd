"""How much of everything, and when what breaks: a schedule that the seed alone decides. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Fault(StrEnum):
    """What can happen, by the name under which it is counted."""

    KILL = "kill"
    FREEZE = "freeze"
    TERMINATE = "terminate"
    BROKER_RESTART = "broker_restart"
    POSTGRES_RESTART = "postgres_restart"
    CUT = "cut"
    CUT_PRODUCER = "cut_producer"
    END_LANE = "end_lane"
    SLOW = "slow_network"
    POISON = "poison"
    KILL_AFTER_DELIVERY = "kill_after_delivery"
    KILL_AFTER_CLAIM = "kill_after_claim"
    KILL_AFTER_STEP = "kill_after_step"
    KILL_IN_CALL = "kill_in_call"
    KILL_AFTER_CALL = "kill_after_call"
    KILL_AFTER_COMMIT = "kill_after_commit"
    KILL_AFTER_REPLY = "kill_after_reply"


EVERY_SECONDS: Final[Mapping[Fault, float]] = MappingProxyType(
    {
        Fault.KILL: 11,
        Fault.FREEZE: 45,
        Fault.TERMINATE: 45,
        Fault.BROKER_RESTART: 90,
        Fault.POSTGRES_RESTART: 90,
        Fault.CUT: 5,
        Fault.CUT_PRODUCER: 25,
        Fault.END_LANE: 25,
        Fault.SLOW: 40,
        Fault.POISON: 100,
        **dict.fromkeys((fault for fault in Fault if fault.startswith("kill_")), 75),
    }
)
"""How often each happens, about; once at least in any run."""

_LONG_SECONDS: Final = 60
_FIRST: Final = 0.05
"""The share of the time before anything breaks, and after all has."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of the schedule."""

    at: float
    """Seconds since the start of the load."""
    fault: Fault
    seed: str
    """By which it makes its choices: whom, how long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    seconds: float
    seed: int
    workers: int = 4
    sessions: Mapping[str, int] = field(default_factory=lambda: {"echo": 220, "steps": 55, "team": 25})
    """How many sessions ask each of the teams."""
    requests_per_second: float = 60
    """What the load keeps up with over the whole time, outages included."""
    outstanding: int = 1_000
    """How many requests wait for a reply at once, at most."""
    ahead: int = 4
    """How many of one session: those of a frozen worker's sessions must not be all that there is room for."""
    duplicated: float = 0.04
    """The share of publishes that are made twice."""
    watched: float = 0.25
    """The share of requests whose events are consumed."""
    longest_freeze: float = 20
    """Seconds; past 15, Postgres and RabbitMQ have given a worker up."""

    @property
    def moves(self) -> float:
        """The share of asking in which somebody cancels, interrupts, or does not want to wait.

        A short run has more of it: each kind is to happen in any run.
        """
        return 0.12 if self.seconds >= _LONG_SECONDS else 0.3

    @property
    def freeze_seconds(self) -> tuple[float, float]:
        """How long a worker is frozen: at least, at most; a short run has no time for long ones."""
        longest = min(self.longest_freeze, self.seconds / 5)
        return min(3.0, longest), longest

    def schedule(self) -> list[Planned]:
        """All faults in their order: each kind spread over the time, at moments of its own."""
        rng = random.Random(self.seed)  # noqa: S311 - to be repeated, not to be secret
        planned = [
            Planned(at, fault, f"{self.seed}/{fault}/{number}")
            for fault, every in EVERY_SECONDS.items()
            for number, at in enumerate(self._moments(rng, max(1, round(self.seconds / every))))
        ]
        return sorted(planned, key=lambda one: one.at)

    def _moments(self, rng: random.Random, number: int) -> list[float]:
        """One moment in each of so many equal parts of the time."""
        first, part = self.seconds * _FIRST, self.seconds * (1 - 2 * _FIRST) / number
        return [first + part * (one + rng.random()) for one in range(number)]
