"""What a claim finds: pure data, read under the session's lock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue
from pydantic_core import from_json

from schemas.ids import SessionType, Target
from schemas.requests import RunRequest
from worker.executors.journal import CONTEXT_KEY, StepRecord
from worker.executors.pauses import Pause
from worker.executors.turn import PastRun

JsonObject = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is kept of a finished or refused run, to answer it again."""

    session_id: str
    user_id: str | None
    target: Target
    fingerprint: bytes
    reply: bytes


@dataclass(frozen=True, slots=True)
class SessionRow:
    """The session as it is stored, before the turn."""

    session_type: SessionType | str
    target_id: str | None
    user_id: str | None
    name: str | None
    session_state: JsonObject
    metadata: JsonObject
    summary: str | None
    turn_seq: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a request once its session is locked."""

    database_time: datetime
    receipt: Receipt | None
    run_exists: bool
    """A run of that id is stored, by whomever."""
    session: SessionRow | None
    history: tuple[PastRun, ...]
    """The last completed runs that fit into 16 MiB, oldest first; members' runs not among them."""
    attempts: int = 0
    """How often the run was started before, as far as recorded."""
    fruitless: int = 0
    """How many of these starts came to nothing: no step was recorded, and no worker that stops ended them."""
    cancelled: bool = False
    """Whether its user has said that the run is not wanted any more."""
    joined: tuple[RunRequest, ...] = ()
    """The requests that have become part of its turn, in order; see worker.turns.coalescing."""
    pauses: Pauses | None = None
    """What it has to know of paused runs; see worker.turns.pausing."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """What a request has to know of its session's paused runs."""

    session_paused: bool
    """Whether one waits for somebody."""
    pause: Pause | None = None
    """What the run has left that the request continues; None: it is not paused, or has left nothing any more."""
    expires_at: datetime | None = None
    """When that run waits no longer; None: it is not paused."""


@dataclass(frozen=True, slots=True)
class Coalesced:
    """The requests that have joined a turn."""

    joined: tuple[RunRequest, ...]
    """In their order."""
    cancelled: bool
    """Whether the user of one of them has said that it is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier attempts of a run left, as a further one begins."""

    attempt: int
    """The number of the further one."""
    steps: tuple[StepRecord, ...] = ()
    history: tuple[PastRun, ...] = ()
    """The runs that the first attempt was shown, where that is recorded."""

    @property
    def context(self) -> JsonObject | None:
        """What the first attempt was given, where that is recorded; see TurnContext."""
        found = next((step for step in self.steps if step.key == CONTEXT_KEY), None)
        return None if found is None else from_json(found.record)
