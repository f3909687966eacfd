"""What a worker counts and measures of itself, by what has happened: a method each, called where it happens.

Measures itself tells nobody: it is what the parts of a worker have by default. worker.operations.metrics has it told to
Prometheus. Each call costs less than a microsecond, waits for nothing and never fails.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from schemas.errors import ErrorCode
from schemas.ids import Target
from schemas.replies import RunStatus

if TYPE_CHECKING:
    # A producer's import has none of the executors.
    from worker.executors.model_calls import ModelCall


class CommitRefusal(StrEnum):
    """Why a commit stored nothing."""

    STALE = "stale"
    """Somebody else wrote the session, or took the run_id."""
    DELETED = "deleted"
    """The session was deleted."""
    REFUSED = "refused"
    """Postgres refused the row."""
    LANE_LOST = "lane_lost"
    """The connection was lost: whether it stored something the next claim finds out."""


class Tried(StrEnum):
    """What is tried again where it fails for the moment."""

    CLAIM = "claim"
    """A claim: the session is another worker's, or its lane was lost before the turn was committed."""
    COMMIT = "commit"
    WRITE = "write"
    """A step or an answer without a run, to be stored."""
    PUBLISH = "publish"
    CONNECT_POSTGRES = "connect_postgres"
    CONNECT_RABBITMQ = "connect_rabbitmq"


class Measures:
    """What has happened. Durations are seconds."""

    def redelivered(self) -> None:
        """Count a request that somebody had before."""

    def answered(self, target: Target, status: RunStatus, code: ErrorCode | None) -> None:
        """Count a request whose answer is there for the first time, as a refusal, or as a turn's end."""

    def executed(self, target: Target, *, seconds: float, queued_seconds: float) -> None:
        """Measure a turn that is stored: how long it was executed, and how long its request had waited for that."""

    def claimed(self, seconds: float) -> None:
        """Measure a claim that Postgres has answered."""

    def committed(self, seconds: float) -> None:
        """Measure a commit of a turn that Postgres has answered."""

    def replied(self, seconds: float) -> None:
        """Measure how long a stored answer has waited for its confirm."""

    def replayed(self) -> None:
        """Count a request that is answered with the stored bytes of an earlier reply."""

    def steps_resumed(self, steps: int) -> None:
        """Count steps that an attempt was given from the journal."""

    def commit_refused(self, reason: CommitRefusal) -> None:
        """Count a commit that stored nothing."""

    def retried(self, what: Tried) -> None:
        """Count a try beyond the first."""

    def dead_lettered(self, code: ErrorCode) -> None:
        """Count a message whose copy is in the dead-letter queue."""

    def batched(self, statement: str, rows: int) -> None:
        """Count the rows that went in one statement; `statement` is its name in the code."""

    def model_called(self, target: Target, call: ModelCall) -> None:
        """Count what a model's answer used, within a turn of the target or for its session's summary."""

    def loop_lagged(self, seconds: float) -> None:
        """Measure how late a timer of the event loop came."""


UNMEASURED: Final = Measures()
