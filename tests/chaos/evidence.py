"""What was seen from outside, by whom it was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    left: Mapping[str, int] = field(default_factory=dict)
    """How many messages are left in each request queue."""
