"""Results of finished turns that Postgres has not confirmed: kept here until it has, and then not executed again.

A turn is at its end, its commit meets a connection that is gone. Whether it was stored only a new claim can tell, and
Postgres may be away for long; the delivery may be taken back meanwhile, since a worker without Postgres gives its
partitions up. The result is kept all the same, as long as this worker lives, and committed under the session's next
claim here: as it was to be, based on the session as it was. Whoever holds the delivery by then replies. What that claim
finds decides:

    a receipt               it was stored, by this commit or as another worker's attempt: the kept one is dropped
    the session, as it was  it is committed, also where another worker has begun an attempt that came to nothing
    ... written by others   the commit is refused: it is dropped, and the turn is taken again
    ... deleted             it ends as `session_deleted`, as it would have without the outage

A turn that was not at its end, and whose next step could not be recorded, is taken up again by its next attempt. What
its steps had come to by then is kept in the same way, and recorded first: a call that must not be made twice would be
called uncertain otherwise.

It is kept for an hour, and while there is room; what is dropped then is a turn that is taken again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self

import structlog

from schemas.requests import RunRequest
from worker.errors import StoreUnavailable
from worker.executors.attempt import Outcome
from worker.executors.journal import StepRecord
from worker.executors.steps import Steps
from worker.executors.turn import Turn
from worker.replies.answers import Timing
from worker.sessions.claim import Claim
from worker.sessions.store import ClaimedSession

KEPT_FOR: Final = timedelta(hours=1)
MOST_RESULTS: Final = 1024
"""As many turns as run at a time in four workers of the default size."""
MOST_BYTES: Final = 128 * 2**20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A turn at its end, and the claim that it is based on."""

    claim: Claim
    turn: Turn
    outcome: Outcome
    timing: Timing

    def of(self, claimed: ClaimedSession) -> ClaimedSession:
        """Return a later claim's session, as it was when the turn was taken."""
        return replace(claimed, claim=self.claim)

    def seen_in(self, claim: Claim) -> Claim:
        """Return a later claim with this attempt in it: an instant one is not recorded, and yet the turn was begun."""
        return replace(claim, attempts=max(claim.attempts, self.turn.attempt))


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """What the steps of an attempt had come to when its lane was lost."""

    attempt: int
    records: tuple[StepRecord, ...]
    first_fruit: bool
    """Whether the attempt is not fruitless any more by them."""

    @classmethod
    def of(cls, turn: Turn) -> Self:
        """Return those of a turn whose attempt was ended by the loss of its lane."""
        journal = turn.steps.journal
        return cls(turn.attempt, tuple(journal.unrecorded), first_fruit=journal.has_fruit and not journal.has_recorded)

    def is_newest_in(self, claim: Claim) -> bool:
        """Whether no later attempt was begun since: what that one recorded of the same steps goes before these."""
        return claim.attempts <= self.attempt

    def seen_in(self, claim: Claim) -> Claim:
        """Return a later claim with this attempt in it, recorded or not."""
        return replace(claim, attempts=max(claim.attempts, self.attempt))

    async def recorded(self, claimed: ClaimedSession) -> ClaimedSession:
        """Record them under a new claim, and return it with what has changed by that. Raises as `record_steps` does."""
        await claimed.record_steps(self.records)
        fruitless = max(claimed.claim.fruitless - self.first_fruit, 0)
        return replace(claimed, claim=replace(claimed.claim, fruitless=fruitless))


class KeptResults:
    """What is kept, by the requests it is of; the oldest is dropped where there is too much."""

    def __init__(
        self,
        *,
        most: int = MOST_RESULTS,
        most_bytes: int = MOST_BYTES,
        kept_for: timedelta = KEPT_FOR,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept_seconds = kept_for.total_seconds()
        self._now = now
        self._bytes = 0
        self._kept: dict[bytes, _Entry] = {}

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def keep(self, request: RunRequest, kept: KeptResult | KeptSteps) -> None:
        """Keep a result, or steps, for its request, until it is dropped."""
        self.drop(request)
        if isinstance(kept, KeptResult):
            kept = _without_history(kept)
            _log.info("result_kept", consequence="it is committed when Postgres is back")
        size_bytes = _size_bytes(kept)
        self._kept[request.fingerprint] = _Entry(request, kept, size_bytes, self._now())
        self._bytes += size_bytes
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._drop_oldest("too much is kept")

    @contextmanager
    def steps_kept(self, request: RunRequest, turn: Turn) -> Iterator[None]:
        """Keep the turn's steps if the block, its attempt, is ended by the loss of its lane."""
        try:
            yield
        except StoreUnavailable:
            self.keep(request, KeptSteps.of(turn))
            raise

    def find(self, request: RunRequest) -> KeptResult | KeptSteps | None:
        """Return what is kept for a request, if anything is."""
        while self._kept and self._now() - next(iter(self._kept.values())).since > self._kept_seconds:
            self._drop_oldest(f"Postgres did not take it in {self._kept_seconds:g} s")
        found = self._kept.get(request.fingerprint)
        return None if found is None else found.kept

    def drop(self, request: RunRequest) -> None:
        """Keep nothing for a request any more."""
        if (entry := self._kept.pop(request.fingerprint, None)) is not None:
            self._bytes -= entry.size_bytes

    def _drop_oldest(self, reason: str) -> None:
        request = next(iter(self._kept.values())).request
        self.drop(request)
        _log.warning(
            "kept_result_dropped",
            run_id=request.run_id,
            session_id=request.session_id,
            reason=reason,
            consequence="the turn is taken again",
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    request: RunRequest
    kept: KeptResult | KeptSteps
    size_bytes: int
    since: float


def _without_history(result: KeptResult) -> KeptResult:
    """Return a result without what only the execution needed: a session's history can have 16 MiB."""
    turn = replace(result.turn, history=(), whole_history=(), steps=Steps(result.turn.session))
    return replace(result, claim=replace(result.claim, history=()), turn=turn)


def _size_bytes(kept: KeptResult | KeptSteps) -> int:
    """Return about how large it is."""
    if isinstance(kept, KeptSteps):
        return sum(len(step.record) for step in kept.records)
    try:
        return len(repr(kept.turn)) + len(repr(kept.outcome))
    except Exception:  # noqa: BLE001 - an executor can leave anything in a turn's fields; the commit says what is wrong
        return 0
