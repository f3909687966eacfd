"""The dead-letter queue, looked through in order: what is not taken out is back at its place afterwards.

RabbitMQ has no way to look into a queue: its messages are taken without an acknowledgement, and closing the channel
returns them to the head, in order. Who else reads the queue does not see them meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError

from worker.broker import BROKER_ERRORS, close_quietly, strays_told
from worker.errors import BrokerUnavailable, StartupError
from worker.intake.topology import Topology

_ANSWER_SECONDS: Final = 30.0
_RETURN_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.05


@dataclass
class DeadLetterQueue:
    """The dead letters of a prefix, while they are looked through."""

    _connection: AbstractConnection
    _topology: Topology
    _channel: AbstractChannel
    _queue: AbstractQueue
    count: int
    """How many there were at the beginning. What comes later is not looked at: a replayed one can come back."""
    _taken: int = 0
    _removed: int = 0
    _publishing: AbstractChannel | None = None

    async def messages(self) -> AsyncIterator[AbstractIncomingMessage]:
        """Go through those that were there at the beginning, the oldest first."""
        while self._taken < self.count:
            with _translated(self._topology):
                message = await self._queue.get(no_ack=False, fail=False, timeout=_ANSWER_SECONDS)
            if message is None:
                return
            self._taken += 1
            yield message

    async def remove(self, message: AbstractIncomingMessage) -> None:
        """Take a message out, for good."""
        with _translated(self._topology):
            await message.ack()
        self._removed += 1

    async def publish(self, message: Message, slot: str) -> None:
        """Publish a request to its slot; it is safe when this returns."""
        with _translated(self._topology):
            if self._publishing is None:
                self._publishing = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            requests = await self._publishing.get_exchange(self._topology.requests, ensure=False)
            await _published(requests, message, slot)

    async def give_back(self) -> None:
        """Return what was taken and not removed, and wait until it is there again."""
        if self._publishing is not None:
            await close_quietly(self._publishing)
        await close_quietly(self._channel)
        held = self._taken - self._removed
        if not held:
            return
        with suppress(TimeoutError, BrokerUnavailable, StartupError):
            async with asyncio.timeout(_RETURN_SECONDS):
                # RabbitMQ does not say when it has returned them.
                while await _count(self._connection, self._topology) < held:  # noqa: ASYNC110 - another program's doing
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _published(exchange: AbstractExchange, message: Message, slot: str) -> None:
    """Publish a message; while it is refused, as for a moment when the partitions change, again."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            await exchange.publish(message, slot, mandatory=True, timeout=_ANSWER_SECONDS)
        except DeliveryError as error:
            if isinstance(error, PublishError) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        else:
            return


@asynccontextmanager
async def dead_letter_queue(connection: AbstractConnection, topology: Topology) -> AsyncIterator[DeadLetterQueue]:
    """Look through the dead letters, within the block. Raises StartupError if there is no such queue.

    Each block adds one to the delivery count of what it looked at and left; at a million RabbitMQ drops a message.
    """
    count = await _count(connection, topology)
    with _translated(topology):
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.get_queue(topology.dead, ensure=False)
    opened = DeadLetterQueue(connection, topology, channel, queue, count)
    try:
        yield opened
    finally:
        await opened.give_back()


async def _count(connection: AbstractConnection, topology: Topology) -> int:
    """Return how many dead letters are there for the taking."""
    with _translated(topology):
        channel = await connection.channel(publisher_confirms=False)
    try:
        with _translated(topology):
            declared = await channel.declare_queue(topology.dead, passive=True, timeout=_ANSWER_SECONDS)
            return declared.declaration_result.message_count or 0
    finally:
        await close_quietly(channel)


@contextmanager
def _translated(topology: Topology) -> Iterator[None]:
    """Raise our errors for the broker's."""
    try:
        with strays_told():
            yield
    except ChannelNotFoundEntity:
        raise StartupError(
            f"RabbitMQ has no {topology.dead!r}, or no {topology.requests!r}: run teamturn topology apply, or correct "
            "TEAMTURN_PREFIX"
        ) from None
    except PublishError:
        raise StartupError(
            f"no queue takes what is published to {topology.requests!r}: run teamturn topology apply; nothing is lost"
        ) from None
    except BROKER_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise BrokerUnavailable(f"RabbitMQ does not go on ({reason}); no dead letter is lost by it") from error
