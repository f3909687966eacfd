"""The hold on a session whose lane is lost while its turn goes on: its lock is taken again on a new one.

The turn itself notices at its next step or at its commit, which may be minutes away; and another worker that is given
the request meanwhile would find the session free, and make the same calls beside it. With the lock held again it waits,
and then finds what this turn has come to. Nothing is written under the hold; that takes a claim of its own, which the
lock, re-entrant within a worker, doesn't keep out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from schemas.requests import RunRequest
from worker.errors import SessionBusyElsewhere, StoreUnavailable
from worker.sessions.claim import Claim
from worker.sessions.store import ClaimedSession, SessionStore

_RETRY_SECONDS: Final = 0.25
"""Less than the fleet waits before it consumes again, after it was cut off from Postgres."""

_log = structlog.get_logger()


class Hold:
    """Keeps a session from other workers, from when its lane is lost to when it is claimed again."""

    def __init__(self, sessions: SessionStore, request: RunRequest) -> None:
        self._sessions = sessions
        self._request = request
        self._holding: asyncio.Task[None] | None = None

    @contextmanager
    def over(self, claimed: ClaimedSession) -> Iterator[None]:
        """Begin to hold the session if the claim's lane is lost during the block; go on after it."""
        with claimed.telling_of_loss(lambda: self._begin(claimed.claim)):
            yield

    async def release(self) -> None:
        """Hold the session no longer: it is claimed again, or given up."""
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)

    def _begin(self, claim: Claim) -> None:
        self._holding = asyncio.create_task(self._hold(claim), name=f"hold {self._request.session_id}")

    async def _hold(self, before: Claim) -> None:
        while True:
            try:
                async with self._sessions.claimed(self._request, 0) as claimed:
                    if not _goes_on(before, claimed.claim):
                        return  # the session belongs to those who have gone on with it
                    lost = asyncio.Event()
                    with claimed.telling_of_loss(lost.set):
                        await lost.wait()
            except (StoreUnavailable, SessionBusyElsewhere):
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - the turn goes on without a hold, and finds out by itself what is wrong
                _log.exception("session_not_held", session_id=self._request.session_id)
                return


def _goes_on(before: Claim, now: Claim) -> bool:
    """Whether the session still is where the turn has found it."""
    if now.receipt is not None:
        return False
    was, is_now = before.session, now.session
    return (was and was.turn_seq) == (is_now and is_now.turn_seq)
