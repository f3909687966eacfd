"""Replies beside the turns: each session's in its order, while its next turn is taken already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from worker.intake.delivery import RequestDelivery
from worker.measures import UNMEASURED, Measures
from worker.replies.replies import ReplyPublisher

_log = structlog.get_logger()


class RepliesInOrder:
    """Publishes stored answers and acknowledges their requests, one after the other for each session."""

    def __init__(self, replies: ReplyPublisher, measures: Measures = UNMEASURED) -> None:
        self._measures = measures
        self._replies = replies
        self._under_way: set[asyncio.Task[None]] = set()
        self._last: dict[str, asyncio.Task[None]] = {}
        """Of each session, the last of its replies that are under way."""

    def send(self, body: bytes, received: RequestDelivery, *, then: Callable[[], None]) -> None:
        """Have an answer that is stored published, behind the session's last one, then acknowledged; then call `then`.

        A delivery that dies meanwhile is answered by whoever is given the request next.
        """
        session_id = received.request.session_id
        sending = self._send(body, received, self._last.get(session_id), then)
        task = asyncio.create_task(sending, name=f"reply {received.request.run_id}")
        self._last[session_id] = task
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def drained(self) -> None:
        """Wait until each is published, or its delivery has died."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def stop(self) -> None:
        """Give up what is under way: those requests are delivered again."""
        for task in self._under_way:
            task.cancel()
        await self.drained()

    async def _send(
        self,
        body: bytes,
        received: RequestDelivery,
        before: asyncio.Task[None] | None,
        then: Callable[[], None],
    ) -> None:
        request, delivery = received.request, received.delivery
        stored = time.perf_counter()
        try:
            if before is not None:
                await asyncio.wait([before])
            if await self._replies.publish(body, request, delivery):
                self._measures.replied(time.perf_counter() - stored)
                await delivery.ack()
            then()
        except Exception:  # noqa: BLE001 - whatever it is: the answer is stored, and is published for the redelivery
            _log.exception("reply_not_published", consequence="the request is delivered again")
            delivery.life.end()
        finally:
            if self._last.get(request.session_id) is asyncio.current_task():
                del self._last[request.session_id]
