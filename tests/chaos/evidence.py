"""What was seen from outside, by whom it was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as the consumer got it."""

    run_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model stub got."""

    run_id: str
    step: str
    began: float
    """Unix seconds."""
    worker: int
    """The process that made it."""
    held: bool = False
    """Whether it was held back."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """A worker did nothing from then to then, and has gone on: unix seconds."""

    worker: int
    began: float
    ended: float


class Upset(StrEnum):
    """What was not as usual for a while, and excuses what nobody can promise then."""

    BROKER = "broker"
    POSTGRES = "postgres"
    FREEZE = "freeze"
    SLOW = "slow"
    CUT = "cut"
    DEATH = "death"
    UNWATCHED = "unwatched"
    """Nobody consumed events."""


@dataclass(frozen=True, slots=True)
class UpsetTime:
    """What was upset from then to then: unix seconds."""

    kind: Upset
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Asked:
    """How a run was asked for."""

    at: float = 0
    """When its first publish began: unix seconds."""
    stream: bool = False
    on_busy: str = "enqueue"


@dataclass(frozen=True, slots=True)
class Cancel:
    """That somebody has said that a run is to be cancelled."""

    run_id: str
    by_its_user: bool = True
    """Whether it names the run's own session and user."""
    before: bool = False
    """Whether it was said before the run was asked for."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a watched run, as its consumer got it."""

    at: float
    """When it came: unix seconds."""
    fields: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.fields["run_id"])

    @property
    def attempt(self) -> tuple[str, int]:
        """Of which attempt of which run it is."""
        return self.run_id, int(self.fields["attempt"])

    @property
    def number(self) -> int:
        """Its number within the attempt."""
        return int(self.fields["number"])

    @property
    def type(self) -> str:
        """What it tells of."""
        return str(self.fields["type"])


@dataclass(frozen=True)
class Evidence:
    """All of it, once every fault is over and nothing moves any more."""

    published: Mapping[str, Sequence[str]]
    """By the producer: of each session the runs, in the order of their first confirmed publish."""
    replies: Sequence[Reply] = ()
    """By the consumer: every one, in order, repeated ones too."""
    calls: Sequence[Call] = ()
    """By the model stub."""
    freezes: Sequence[Freeze] = ()
    """By who has frozen and thawed them."""
    asked: Mapping[str, Asked] = field(default_factory=dict)
    """By the producer: how each run was asked for."""
    cancels: Sequence[Cancel] = ()
    """By the producer: what was said to be cancelled, confirmed or not."""
    events: Sequence[Event] = ()
    """By their consumer, in order."""
    upsets: Sequence[UpsetTime] = ()
    """By who has upset it."""
    cancelled: Mapping[str, float] = field(default_factory=dict)
    """By Postgres: when it was first stored, in the name of its user, that a run is cancelled: unix seconds."""
    stored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By Postgres: of each session the runs, in the order of `run_index`; members' runs are not among them."""
    stored_times: Mapping[str, int] = field(default_factory=dict)
    """How often each run's row was inserted and committed."""
    receipts: Mapping[str, bytes] = field(default_factory=dict)
    """Of each run the reply's bytes as they are stored to answer it again."""
    states: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    """Of each session its state."""
    recorded: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """When a step of a run was recorded: unix seconds."""
    unanswered: Mapping[str, int] = field(default_factory=dict)
    """Of each request that was published several times: how many of these publishes have no reply."""
    stray_unlocks: int = 0
    """By Postgres's log: how many locks were given back that the connection did not have."""
    left: Mapping[str, int] = field(default_factory=dict)
    """How many messages are left in each request queue."""
