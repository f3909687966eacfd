"""The events of one run, over however many connections: in their order, none twice, and bounded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pydantic import ValidationError

from schemas.events import RUN_EVENT, RunEvent, RunFinished
from schemas.replies import RunReply
from schemas.requests import RunRequest
from worker.broker import close_quietly
from worker.client.link import Link

MOST_WAITING: Final = 10_000
MOST_BYTES: Final = 32 * 2**20
"""What waits to be read is bounded by these two; what comes then is dropped, as RabbitMQ and workers drop it."""
_LATE_SECONDS: Final = 1.0
"""How long after the reply the events before it are waited for: they go another way."""


class Watch:
    """A subscription to a run's events, made anew on each link."""

    def __init__(self, request: RunRequest, exchange: str, key: str) -> None:
        self._request = request
        self._exchange = exchange
        self._key = key
        self._channel: AbstractChannel | None = None
        self._waiting: deque[tuple[int, RunEvent]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._last = (0, 0)
        """Attempt and number of the event that arrived last."""

    async def begin(self, link: Link) -> None:
        """Subscribe over a link. Raises as `Link.publish` does."""
        self._channel = await link.watch(self._exchange, self._key, self._received)

    async def end(self) -> None:
        """Unsubscribe; the queue goes with its consumer."""
        if self._channel is not None:
            # A stream can be closed after its client was.
            with suppress(Exception):
                await close_quietly(self._channel)

    async def events(self, answered: asyncio.Future[RunReply]) -> AsyncIterator[RunEvent]:
        """Yield the events, at last `run_finished` with the reply; it is made of that, where it does not come.

        Raises what `answered` raises.
        """
        while True:
            late = answered.done()
            if late:
                answered.result()  # an error is told at once
            if not self._waiting and not await self._more(answered, late=late):
                if late:
                    yield self._finished(answered.result())
                    return
                continue
            size_bytes, event = self._waiting.popleft()
            self._bytes -= size_bytes
            if event.type == "run_finished":
                # Of a large reply the event has not all.
                yield event.model_copy(update={"reply": await answered})
                return
            yield event

    async def _more(self, answered: asyncio.Future[RunReply], *, late: bool) -> bool:
        """Wait for an event, or for the reply where that is not there yet; return whether there is an event."""
        self._arrived.clear()
        arrived = asyncio.ensure_future(self._arrived.wait())
        try:
            if late:
                await asyncio.wait({arrived}, timeout=_LATE_SECONDS)
            else:
                either: set[asyncio.Future[Any]] = {arrived, answered}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
        return bool(self._waiting)

    async def _received(self, message: AbstractIncomingMessage) -> None:
        size_bytes = len(message.body)
        if len(self._waiting) >= MOST_WAITING or self._bytes + size_bytes > MOST_BYTES:
            return
        with suppress(ValidationError):  # of a later version
            event = RUN_EVENT.validate_json(message.body)
            if (event.attempt, event.number) <= self._last:
                return  # published again by a worker that lost its connection, or by one that lost the run
            self._last = (event.attempt, event.number)
            self._waiting.append((size_bytes, event))
            self._bytes += size_bytes
            self._arrived.set()

    def _finished(self, reply: RunReply) -> RunFinished:
        target = self._request.target
        attempt, number = max(self._last, (reply.attempt, 0))
        return RunFinished(
            run_id=self._request.run_id,
            session_id=self._request.session_id,
            session_type=target.type,
            target_id=target.id,
            attempt=attempt,
            number=number + 1,
            time=time.time(),
            reply=reply,
        )
