"""One connection to RabbitMQ as a client uses it, from its opening to its loss."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import aiormq
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pydantic import SecretStr

from worker.broker import BROKER_ERRORS, BrokerConnection, connect, strays_told
from worker.errors import BrokerUnavailable, NoRoute, PublishNacked, RequestTooLarge
from worker.frames import unlimited
from worker.intake.topology import Topology
from worker.patience import answered_within

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
_ANSWER_SECONDS: Final = 30.0
"""RabbitMQ answers in milliseconds; what is this late will not come, and the connection is taken for dead."""
_ALARM_SECONDS: Final = 0.25
"""Between two looks at whether an alarm is over."""
_REFUSED_SECONDS: Final = 10.0
"""How long what RabbitMQ refuses (basic.nack) is published again. Partitions change in a fraction of a second."""
_REFUSED_AGAIN_SECONDS: Final = 0.05
_MOST_UNCONFIRMED: Final = 256
"""How many messages wait for their confirms at a time."""
_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
"""As RabbitMQ says it when it closes the channel (rabbit_channel.erl, check_msg_size)."""

Received = Callable[[AbstractIncomingMessage], Awaitable[None]]


class Link:
    """A connection, the channel that requests are published on and their replies come to, and whether it lasts.

    Direct reply-to is bound to its channel: when that is gone, so is every reply that it was waiting for. So nothing
    of a link is mended; it is `ended`, and another one is opened.
    """

    def __init__(self, connection: BrokerConnection, opened: AbstractChannel, channel: aiormq.Channel) -> None:
        """Use `open`."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._opened = opened  # kept: its end is what closes the channel
        self._channel = channel
        self._unconfirmed = asyncio.Semaphore(_MOST_UNCONFIRMED)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        connection.amqp.close_callbacks.add(self.end)
        opened.close_callbacks.add(self.end)

    @classmethod
    async def open(cls, url: SecretStr, names: Topology, received: Received) -> Self:
        """Connect; `received` is called with each reply.

        Raises StartupError or BrokerUnavailable, and NoRoute where the prefix has no exchanges.
        """
        connection = await connect(url, name="teamturn client")
        try:
            with strays_told():
                async with asyncio.timeout(_ANSWER_SECONDS):
                    opened = await connection.amqp.channel(publisher_confirms=True, on_return_raises=True)
                    link = cls(connection, opened, unlimited(await opened.get_underlay_channel()))
                    await opened.get_exchange(names.requests)
                    replies = await opened.get_queue(DIRECT_REPLY_TO, ensure=False)
                    await replies.consume(received, no_ack=True)
        except BaseException as error:
            await connection.close()
            if isinstance(error, ChannelNotFoundEntity):
                raise _no_exchange(names.requests) from None
            if isinstance(error, BROKER_ERRORS):
                raise BrokerUnavailable(f"the connection to RabbitMQ was lost ({type(error).__name__})") from error
            raise
        return link

    @property
    def blocked(self) -> bool:
        """Whether RabbitMQ takes nothing that is published, for an alarm: memory or disk is short."""
        return self._connection.blocked

    def end(self, *_: Any) -> None:  # noqa: ANN401 - aio-pika says who closed and why
        """Give the link up."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def close(self) -> None:
        """End it, and close the connection within a limit."""
        self.end()
        await self._connection.close()

    async def publish(self, message: Message, *, exchange: str, routing_key: str) -> None:
        """Publish a message and wait for its confirm; as long as an alarm lasts, wait for its end.

        What RabbitMQ refuses is published again for some seconds: so it is while the workers' partitions change.
        Raises NoRoute, PublishNacked or RequestTooLarge for what is wrong with this message, and BrokerUnavailable
        where the link ended.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _REFUSED_SECONDS
        while True:
            try:
                return await self._publish_once(message, exchange=exchange, routing_key=routing_key)
            except PublishNacked:
                if loop.time() > until:
                    raise
            await asyncio.wait({self.ended}, timeout=_REFUSED_AGAIN_SECONDS)

    async def _publish_once(self, message: Message, *, exchange: str, routing_key: str) -> None:
        async with self._turn_of(message), self._unconfirmed:
            while self.blocked and not self.ended.done():
                # aiormq tells nobody when it is over.
                await asyncio.wait({self.ended}, timeout=_ALARM_SECONDS)
            try:
                async with self._answered():
                    # What aio-pika's publish does, but for waiting until the socket has taken it: that would be one
                    # after the other.
                    await self._channel.basic_publish(
                        message.body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=message.properties,
                        mandatory=True,
                        wait=False,
                    )
            except PublishError:
                raise NoRoute(
                    f"no queue takes what is published to {exchange!r}: start a worker, or run teamturn topology apply"
                ) from None
            except DeliveryError:
                raise PublishNacked(
                    f"RabbitMQ did not take what was published to {exchange!r} (basic.nack): is one of its queues full?"
                ) from None
            except ChannelNotFoundEntity as error:
                # It closed the channel, and whatever else was under way on it is told the same.
                self.end()
                if f"'{exchange}'" in str(error):
                    raise _no_exchange(exchange) from None
                raise BrokerUnavailable("the channel was closed") from error
            except ChannelPreconditionFailed as error:
                self.end()
                largest = _TOO_LARGE.search(str(error))
                if largest is not None and message.body_size > int(largest[1]):
                    raise RequestTooLarge(
                        f"it has {message.body_size} bytes, and RabbitMQ takes {largest[1]} at most"
                    ) from None
                raise BrokerUnavailable("the channel was closed") from error
            except BROKER_ERRORS as error:
                self.end()
                raise BrokerUnavailable(f"the connection to RabbitMQ was lost ({type(error).__name__})") from error

    async def watch(self, exchange: str, key: str, received: Received) -> AbstractChannel:
        """Have `received` called with what is published to a topic exchange, until the channel is closed.

        Raises as `publish` does. On a channel of its own: what goes wrong there is nobody else's.
        """
        try:
            async with self._answered():
                channel = await self._connection.amqp.channel(publisher_confirms=False)
                queue = await channel.declare_queue(exclusive=True, auto_delete=True)
                await queue.bind(exchange, key)
                await queue.consume(received, no_ack=True)
        except ChannelNotFoundEntity:
            raise _no_exchange(exchange) from None
        except BROKER_ERRORS as error:
            self.end()
            raise BrokerUnavailable(f"the connection to RabbitMQ was lost ({type(error).__name__})") from error
        return channel

    @asynccontextmanager
    async def _answered(self) -> AsyncIterator[None]:
        """Wait for RabbitMQ's answer within a limit, which does not run while an alarm keeps it from answering."""
        try:
            with strays_told():
                async with answered_within(_ANSWER_SECONDS, held_up=lambda: self.blocked):
                    yield
        except BrokerUnavailable:
            self.end()
            raise

    def _turn_of(self, message: Message) -> asyncio.Lock:
        """Let one message of an id be under way at a time: by that alone aiormq knows which was returned."""
        return self._turns.setdefault(message.message_id or "", asyncio.Lock())


def _no_exchange(name: str) -> NoRoute:
    return NoRoute(f"RabbitMQ has no exchange {name!r}: start a worker, or run teamturn topology apply")
