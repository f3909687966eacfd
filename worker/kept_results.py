"""Results of finished turns that Postgres has not confirmed: kept here until it has, and then not executed again.

A turn is at its end, its commit meets a connection that is gone. Whether it was stored only a new claim can tell, and
Postgres may be away for long; the delivery may be taken back meanwhile, since a worker without Postgres gives its
partitions up. The result is kept all the same, as long as this worker lives, and committed under the session's next
claim here: as it was to be, based on the session as it was. Whoever holds the delivery by then replies. What that claim
finds decides:

    a receipt               it was stored, by this commit or as another worker's attempt: the kept one is dropped
    a newer attempt         begun by another worker: the kept one is dropped, the turn is taken as the next attempt
    the session, as it was  it is committed
    ... written by others   the commit is refused: it is dropped, and the turn is taken again
    ... deleted             it ends as `session_deleted`, as it would have without the outage

It is kept for an hour, and while there is room; what is dropped then is a turn that is taken again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import structlog

from schemas.requests import RunRequest
from worker.executors.attempt import Outcome
from worker.executors.steps import Steps
from worker.executors.turn import Turn
from worker.replies.answers import Timing
from worker.sessions.claim import Claim

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

    def is_newest_in(self, claim: Claim) -> bool:
        """Whether no later attempt was begun since."""
        return claim.attempts <= self.turn.attempt

    def seen_in(self, claim: Claim) -> Claim:
        """Return a later claim with this attempt in it: an instant one is not recorded, and yet the turn was begun."""
        return replace(claim, attempts=max(claim.attempts, self.turn.attempt))


class KeptResults:
    """The results that are kept, by their requests; the oldest are dropped where there are too many."""

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

    def keep(self, request: RunRequest, result: KeptResult) -> None:
        """Keep a result for its request, until it is dropped."""
        self.drop(request)
        kept = _without_history(result)
        size_bytes = _size_bytes(kept)
        self._kept[request.fingerprint] = _Entry(request, kept, size_bytes, self._now())
        self._bytes += size_bytes
        _log.info("result_kept", consequence="it is committed when Postgres is back")
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._drop_oldest("too many results are kept")

    def find(self, request: RunRequest) -> KeptResult | None:
        """Return the result that is kept for a request, if there is one."""
        while self._kept and self._now() - next(iter(self._kept.values())).since > self._kept_seconds:
            self._drop_oldest(f"Postgres did not take it in {self._kept_seconds:g} s")
        found = self._kept.get(request.fingerprint)
        return None if found is None else found.result

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
    result: KeptResult
    size_bytes: int
    since: float


def _without_history(result: KeptResult) -> KeptResult:
    """Return a result without what only the execution needed: a session's history can have 16 MiB."""
    turn = replace(result.turn, history=(), steps=Steps(result.turn.session))
    return replace(result, claim=replace(result.claim, history=()), turn=turn)


def _size_bytes(result: KeptResult) -> int:
    """Return about how large a result is."""
    try:
        return len(repr(result.turn)) + len(repr(result.outcome))
    except Exception:  # noqa: BLE001 - an executor can leave anything in a turn's fields; the commit says what is wrong
        return 0
