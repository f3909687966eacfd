"""Moving messages from a queue to others: in order, many under way at a time, none lost.

A message is acknowledged when its copy is confirmed. Interrupted in between it is in both queues; run again, it is
moved again. Of the copies of one message, the first is where it should be: what is published over one channel reaches a
queue in order, and what is unacknowledged comes again in order.

That all which a queue had is moved is known by a fence: a message of our own, published to the queue, that comes behind
what was there. RabbitMQ's count of messages does not tell: it leaves out what is not on disk yet, though it may be
confirmed a moment later (measured: 62 behind 63, in one of ten changes), and is 0 where the queue's leader is away.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiormq
from aiormq import spec
from aiormq.abc import DeliveredMessage

from worker.broker import BrokerConnection, close_quietly
from worker.cancellation import was_cancelled
from worker.errors import StartupError
from worker.frames import unlimited
from worker.intake.delivery import WITHOUT_MESSAGE_ID
from worker.intake.forwarding import BROKERS_COUNTERS, sendable
from worker.patience import answered_within

_FENCE: Final = "x-teamturn-fence"
_ANSWER_SECONDS: Final = 30.0
_REPORT_SECONDS: Final = 2.0

Target = Callable[[DeliveredMessage], str]
"""The name of the queue that a message goes to."""


class Mover:
    """Moves messages over one connection, and reports how many."""

    def __init__(self, connection: BrokerConnection, *, prefetch: int, report: Callable[[str], None]) -> None:
        """`prefetch`: how many are under way.

        It must be the same each time that a queue is consumed, and no less than its consumers had before: what they
        left is returned in order to who takes as many.
        """
        self._connection = connection
        self._prefetch = prefetch
        self._report = report
        self._reported = time.monotonic()
        self._seconds = 0.0
        self.moved = 0
        """How many were moved so far."""

    @property
    def rate(self) -> float:
        """Messages a second, fences included in the time; 0 before the first."""
        return self.moved / self._seconds if self._seconds else 0.0

    async def drain(self, queue: str, target: Target, *, most: int | None = None) -> None:
        """Move all that a queue has now, or so many of them.

        Raises StartupError if nothing comes, as when somebody else consumes it, and what aio-pika raises; what was not
        acknowledged is still there then.
        """
        began = time.monotonic()
        async with self._channel(confirms=False) as source, self._channel(confirms=True) as sink:
            await source.basic_qos(prefetch_count=self._prefetch)
            passage = _Passage(source, sink, queue, target, self._count, held_up=lambda: self._connection.blocked)
            await passage.through(most)
        self._seconds += time.monotonic() - began

    def _count(self, number: int) -> None:
        self.moved += number
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            self._reported = now
            self._report(f"  {self.moved:,} messages moved")

    @asynccontextmanager
    async def _channel(self, *, confirms: bool) -> AsyncIterator[aiormq.Channel]:
        channel = await self._connection.amqp.channel(publisher_confirms=confirms, on_return_raises=confirms)
        try:
            yield unlimited(await channel.get_underlay_channel())
        finally:
            await close_quietly(channel)


class _Passage:
    """One consumption of a queue, up to a fence, or to so many messages."""

    def __init__(
        self,
        source: aiormq.Channel,
        sink: aiormq.Channel,
        queue: str,
        target: Target,
        count: Callable[[int], None],
        *,
        held_up: Callable[[], bool],
    ) -> None:
        self._source = source
        self._sink = sink
        self._queue = queue
        self._target = target
        self._count = count
        self._held_up = held_up
        self._fence = uuid.uuid4().hex
        self._left: int | None = None
        """How many may come yet; None: any number."""
        self._ended = False
        """Whether what is delivered from now on is left to the next passage."""
        self._under_way: deque[tuple[DeliveredMessage, asyncio.Future[Any]]] = deque()
        self._came = asyncio.Event()

    async def through(self, most: int | None) -> None:
        self._left = most
        # The lowest priority: RabbitMQ 4.3 has one without a priority overtake those of 0.
        fence = spec.Basic.Properties(headers={_FENCE: self._fence}, delivery_mode=2, priority=0)
        async with answered_within(_ANSWER_SECONDS, held_up=self._held_up):
            await self._publish(self._queue, b"", fence)
        try:
            await self._source.basic_consume(self._queue, self._received)
            while self._under_way or not self._ended:
                await self._some_come()
                await self._settle()
            # It is not cancelled: what is delivered beyond the fence would be overtaken. The channel is closed for it.
        finally:
            self._ended = True
            for _, confirmed in self._under_way:
                confirmed.cancel()

    async def _received(self, message: DeliveredMessage) -> None:
        # It awaits nothing: the tasks are made, and begin, in the order of the deliveries.
        if self._ended:
            return
        confirmed: asyncio.Future[Any]
        fence = (message.header.properties.headers or {}).get(_FENCE)
        if fence is None or message.body:
            # With a body it is a producer's, whatever its headers say.
            confirmed = asyncio.create_task(self._publish(self._target(message), message.body, properties_of(message)))
        else:
            # Another one was left by who was interrupted.
            self._ended = fence == self._fence
            confirmed = asyncio.get_running_loop().create_future()
            confirmed.set_result(None)
        if self._left is not None:
            self._left -= 1
            self._ended |= self._left <= 0
        self._under_way.append((message, confirmed))
        self._came.set()

    async def _publish(self, queue: str, body: bytes, properties: spec.Basic.Properties) -> None:
        await self._sink.basic_publish(
            body, exchange="", routing_key=queue, properties=properties, mandatory=True, wait=False
        )

    async def _some_come(self) -> None:
        if not self._under_way:
            self._came.clear()
            try:
                async with answered_within(_ANSWER_SECONDS, held_up=self._held_up):
                    await self._came.wait()
            except TimeoutError:
                raise StartupError(
                    f"nothing comes out of the queue {self._queue!r}: is it consumed by another program? Run this again"
                ) from None
        if was_cancelled():
            raise asyncio.CancelledError

    async def _settle(self) -> None:
        """Wait until the oldest is confirmed; acknowledge it, and those behind it that are confirmed as well."""
        async with answered_within(_ANSWER_SECONDS, held_up=self._held_up):
            await asyncio.wait({self._under_way[0][1]})
        for _, confirmed in self._under_way:
            # Of two messages of one id, aiormq may tell the wrong one's task that it was returned: none is let go.
            if confirmed.done():
                confirmed.result()
        moved = 0
        tag = None
        while self._under_way and self._under_way[0][1].done():
            message, confirmed = self._under_way.popleft()
            moved += isinstance(confirmed, asyncio.Task)
            tag = message.delivery_tag
        if tag is not None:
            await self._source.basic_ack(tag, multiple=True, wait=False)
        self._count(moved)


def properties_of(message: DeliveredMessage) -> spec.Basic.Properties:
    """Return the properties that a message's copy is published with.

    All that it has, also those for which a worker refuses it; but for what would have the broker route or refuse the
    copy differently, and for headers that can't be sent again.
    """
    given = message.header.properties
    without_id: dict[str, Any] = {} if given.message_id else {WITHOUT_MESSAGE_ID: "1"}
    headers = {name: value for name, value in (given.headers or {}).items() if name not in BROKERS_COUNTERS}
    return spec.Basic.Properties(
        content_type=given.content_type,
        content_encoding=given.content_encoding,
        headers=sendable(without_id | headers),
        delivery_mode=2,
        priority=given.priority,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        expiration=given.expiration,
        message_id=given.message_id,
        timestamp=given.timestamp,
        message_type=given.message_type,
        app_id=given.app_id,
    )
