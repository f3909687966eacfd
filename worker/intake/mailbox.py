"""Mailboxes: a session's requests one after the other, in the order of their delivery; sessions side by side."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from schemas.errors import ErrorCode
from worker.errors import RequestRefused
from worker.intake.delivery import Delivery, RequestDelivery

Take = Callable[[RequestDelivery], Awaitable[None]]
Bury = Callable[[Delivery, RequestRefused], None]
Busy = Callable[[RequestDelivery, Sequence[RequestDelivery]], None]

_RETRY_SECONDS: Final = (0.1, 1.0, 0.0)

_log = structlog.get_logger()


class Mailboxes:
    """The mailbox of every session that has requests here.

    A session is busy here from the first request in its mailbox to the end of the last one, also while its partition
    leaves and comes back: within a worker it is the mailbox that keeps two turns of a session apart.
    """

    def __init__(self, take: Take, bury: Bury, busy: Busy = lambda *_: None) -> None:
        """`bury` is given what `take` kept failing on; `busy` a request and the unfinished ones that it came behind."""
        self._take = take
        self._bury = bury
        self._busy = busy
        self._boxes: dict[str, deque[RequestDelivery]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many requests are here, the running ones included."""
        return sum(len(box) for box in self._boxes.values())

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest request is here that is its session's next; 0: there is none.

        Also of one that goes on though its channel is gone.
        """
        arrived = min((box[0].delivery.received for box in self._boxes.values() if box), default=None)
        return 0.0 if arrived is None else max(time.time() - arrived, 0.0)

    def put(self, delivery: RequestDelivery) -> None:
        """Add a request behind those of its session."""
        session_id = delivery.request.session_id
        box = self._boxes.get(session_id)
        if box is not None:
            delivery.mailbox = box
            run_id = delivery.request.run_id
            # One that is here already, published twice, has been judged by what it came behind the first time.
            again = any(one.request.run_id == run_id for one in box)
            earlier = [] if again else [one for one in box if not one.settled]
            box.append(delivery)
            if earlier:
                self._busy(delivery, earlier)
            return
        delivery.mailbox = self._boxes[session_id] = deque([delivery])
        task = asyncio.create_task(self._serve(session_id), name=f"mailbox {session_id}")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def forget_dead(self) -> None:
        """Drop what only waits and whose channel is gone: the broker has given it to somebody else.

        The head stays: it has been started, and goes on under its session's lock.
        """
        for box in self._boxes.values():
            head = box.popleft()
            waiting = [delivery for delivery in box if delivery.alive]
            box.clear()
            box.extend([head, *waiting])

    async def drained(self) -> None:
        """Wait until nothing is here any more."""
        while self._serving:
            await asyncio.wait(self._serving)

    async def stop(self) -> None:
        """Cancel what runs, and wait for its end."""
        for task in self._serving:
            task.cancel()
        await self.drained()

    async def _serve(self, session_id: str) -> None:
        box = self._boxes[session_id]
        try:
            while box:
                if box[0].alive:
                    await self._take_safely(box[0])
                box.popleft()
        finally:
            # Nothing was awaited since the box was seen empty: no request can have come in between.
            del self._boxes[session_id]

    async def _take_safely(self, delivery: RequestDelivery) -> None:
        """Take a request; one that fails in a way that was not foreseen must not hold up those behind it."""
        for seconds in _RETRY_SECONDS:
            try:
                await self._take(delivery)
            except BaseException:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the worker stops
                request = delivery.request
                _log.exception("request_failed", run_id=request.run_id, session_id=request.session_id)
                await asyncio.sleep(seconds)
            else:
                return
        refusal = RequestRefused(ErrorCode.INTERNAL_ERROR, "the worker failed; see its log", request=delivery.request)
        self._bury(delivery.delivery, refusal)
