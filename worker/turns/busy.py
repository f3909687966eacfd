"""Busy sessions: a request that comes behind an unfinished one, and does not want to wait (`on_busy`).

Busy means that an earlier request of the session, another one, is in this worker's mailbox and not finished: a lock
that somebody holds is waited for. What has been admitted, since there is a run, a receipt or an attempt of it, stays
admitted.

    reject      refused with `session_busy`, at once and not in its place
    interrupt   the earlier ones of its user are cancelled, as by a control message; then it is taken in its place
    coalesce    it waits, and becomes one turn with those that wait beside it; see coalescing

The first two are decided by what a claim finds, which the session's lock does not keep out: it is re-entrant within a
worker, and nothing of the session is written. Where another worker has the lock, it is decided in the request's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from structlog.contextvars import bound_contextvars

from schemas.requests import OnBusy
from worker.decide import Execute, Refuse, decide
from worker.errors import ClaimOutdated, SessionBusyElsewhere, StatementRefused, StoreUnavailable
from worker.executors.registry import Executors
from worker.intake.delivery import RequestDelivery
from worker.replies.in_order import RepliesInOrder
from worker.sessions.statements import Cancellation
from worker.sessions.store import SessionStore
from worker.turns.ending import Ending
from worker.turns.pausing import with_pauses
from worker.turns.spans import processing
from worker.turns.telling import PublishEvent, tell_answer

_log = structlog.get_logger()


class BusySessions:
    """Looks at requests that came behind unfinished ones, beside the session's turns."""

    def __init__(
        self,
        sessions: SessionStore,
        executors: Executors,
        replies: RepliesInOrder,
        ending: Ending,
        publish: PublishEvent,
    ) -> None:
        self._publish = publish
        self._sessions = sessions
        self._executors = executors
        self._replies = replies
        self._ending = ending
        self._looking: set[asyncio.Task[None]] = set()

    def came(self, received: RequestDelivery, earlier: Sequence[RequestDelivery]) -> None:
        """Look at a request that came behind these. It doesn't wait."""
        received.busy = True
        if received.request.on_busy not in {OnBusy.REJECT, OnBusy.INTERRUPT}:
            return
        task = asyncio.create_task(self._look(received, earlier), name=f"busy {received.request.run_id}")
        received.judged = task
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def stop(self) -> None:
        """Give up what is being looked at: it is delivered again."""
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

    async def _look(self, received: RequestDelivery, earlier: Sequence[RequestDelivery]) -> None:
        request = received.request
        with bound_contextvars(run_id=request.run_id, session_id=request.session_id):
            try:
                await self._judge(received, earlier)
            except (SessionBusyElsewhere, StoreUnavailable, StatementRefused, ClaimOutdated) as error:
                _log.debug("busy_not_judged", reason=str(error), consequence="it is judged in its place")
            except Exception:  # noqa: BLE001 - whatever it is, the request has its place
                _log.exception("busy_judging_failed", consequence="it is judged in its place")

    async def _judge(self, received: RequestDelivery, earlier: Sequence[RequestDelivery]) -> None:
        request = received.request
        executor = self._executors.get(request.target)
        async with self._sessions.claimed(request, 0) as bare:
            claimed = await with_pauses(bare, executor)
            decision = decide(
                request,
                claimed.claim,
                target_known=executor is not None,
                forbidden_property=received.delivery.forbidden_property(),
                busy=True,
            )
            if isinstance(decision, Refuse) and decision.stored and received.alive:
                with processing(received):
                    body = await self._ending.refused(claimed, decision, received.delivery.published)
                    received.settled = True
                    tell_answer(self._publish, request, body)
                    self._replies.send(body, received, then=lambda: None)
            elif isinstance(decision, Execute) and request.on_busy is OnBusy.INTERRUPT and not claimed.claim.attempts:
                await self._interrupt(received, earlier)

    async def _interrupt(self, received: RequestDelivery, earlier: Sequence[RequestDelivery]) -> None:
        """Cancel the earlier ones. One of another user's, or for another target, is not theirs to interrupt."""
        request = received.request
        for one in earlier:
            if (one.request.user_id, one.request.target) == (request.user_id, request.target):
                _log.debug("run_interrupted", interrupted=one.request.run_id)
                await self._sessions.cancel(Cancellation(one.request.run_id, request.session_id, request.user_id))
