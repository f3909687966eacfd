"""Publishing with confirms: a message is published when the broker has said so."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final
from weakref import WeakValueDictionary

import aiormq
import structlog
from aio_pika import Message
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError, PublishError
from aiormq.exceptions import ConnectionInternalError
from pydantic import SecretStr

from worker.broker import BROKER_ERRORS, BrokerConnection, connect, strays_told
from worker.cancellation import was_cancelled
from worker.errors import BrokerUnavailable, StartupError
from worker.frames import unlimited
from worker.intake.topology import Topology, ensure
from worker.measures import UNMEASURED, Measures, Tried
from worker.patience import answered_within

_CONFIRM_SECONDS: Final = 30.0
"""A confirm takes milliseconds; one that is this late will not come, and the connection is taken for dead."""
_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
_ALARM_SECONDS: Final = 0.25
"""Between two looks at whether an alarm is over."""

_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
"""As RabbitMQ says it when it closes the channel (rabbit_channel.erl, check_msg_size)."""

_log = structlog.get_logger()


class Unroutable(Exception):
    """No queue takes the message."""


class MessageTooLarge(Exception):
    """RabbitMQ is set to take no message of that size."""

    def __init__(self, largest_bytes: int) -> None:
        super().__init__(f"RabbitMQ takes messages of {largest_bytes} bytes at most")
        self.largest_bytes = largest_bytes


class Publisher:
    """One connection and channel for publishing, and new ones whenever they are lost."""

    def __init__(self, url: SecretStr, topology: Topology, *, name: str, measures: Measures = UNMEASURED) -> None:
        self._measures = measures
        self._url = url
        self._topology = topology
        self._name = name
        self._connection: BrokerConnection | None = None
        self._opened: AbstractChannel | None = None
        self._channel: aiormq.Channel | None = None
        self._opening = asyncio.Lock()
        self._doubtful = False
        self._largest_bytes = sys.maxsize
        """What the broker takes, as far as it has said so; each message past it would cost the channel."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes nothing over the connection, for an alarm."""
        return self._connection is not None and self._connection.blocked

    async def open(self) -> None:
        """Connect. Raises StartupError or BrokerUnavailable."""
        await self._ready_channel()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        wanted: Callable[[], bool],
        most_tries: int | None = None,
        alone: bool = False,
    ) -> bool:
        """Publish until the broker confirms it (True), or until it is no longer wanted (False).

        Raises Unroutable if it is mandatory and no queue takes it, if `most_tries` have failed (those that reach no
        broker don't count), or if the broker fails by it while it is `alone`: the only one under way on this
        connection; MessageTooLarge if the broker is set to take less. A lost confirm is repeated, so that a consumer
        can see the message twice; it can't be lost.
        """
        tries = failed = 0
        async with self._turn_of(message):
            while wanted() and not was_cancelled():
                if message.body_size > self._largest_bytes:
                    raise MessageTooLarge(self._largest_bytes)
                if self.blocked:
                    # Whatever is sent now is taken when the alarm is over, also what was given up and sent again.
                    await asyncio.sleep(_ALARM_SECONDS)
                    continue
                try:
                    await self._publish_once(message, exchange, routing_key, mandatory=mandatory, wanted=wanted)
                except PublishError:
                    raise Unroutable(f"no queue takes {routing_key!r} from {exchange!r}") from None
                except (BrokerUnavailable, StartupError, DeliveryError, *BROKER_ERRORS) as error:
                    if self._is_about_size(error):
                        continue  # of this message, or of another one that was under way on the channel
                    tries += 1
                    failed += not isinstance(error, BrokerUnavailable | StartupError)
                    if failed == most_tries or (alone and isinstance(error, ConnectionInternalError)):
                        raise Unroutable(f"{routing_key!r} from {exchange!r}: {type(error).__name__}") from error
                    if tries % 10 == 1:
                        reason = f"{type(error).__name__}: {error}"[:300]
                        _log.warning("publish_retried", exchange=exchange, reason=reason)
                    await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS)) - 1])
                    self._measures.retried(Tried.PUBLISH)
                else:
                    return True
        return False

    def _is_about_size(self, error: Exception) -> bool:
        """Whether the broker closed the channel for a message that is too large for it; what it takes is kept."""
        found = _TOO_LARGE.search(str(error)) if isinstance(error, ChannelPreconditionFailed) else None
        if found is None:
            return False
        self._largest_bytes = int(found[1])
        return True

    def _turn_of(self, message: Message) -> AbstractAsyncContextManager[object]:
        """Let one message of an id be under way at a time: by that alone the client knows which was returned."""
        if not message.message_id:
            return nullcontext()  # the client invents one
        return self._turns.setdefault(message.message_id, asyncio.Lock())

    async def _publish_once(
        self, message: Message, exchange: str, routing_key: str, *, mandatory: bool, wanted: Callable[[], bool]
    ) -> None:
        with strays_told():
            channel = await self._ready_channel()
        used = self._connection

        def held_up() -> bool:
            return used is not None and used.blocked

        answered = answered_within(_CONFIRM_SECONDS, held_up=held_up, given_up=lambda: not wanted())
        try:
            with strays_told():
                # What aio-pika's publish does, but for waiting until the socket has taken it: that would be one after
                # the other.
                async with answered:
                    await channel.basic_publish(
                        message.body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=message.properties,
                        mandatory=mandatory,
                        wait=False,
                    )
        except ChannelNotFoundEntity:
            self._doubtful = True
            raise
        except ConnectionInternalError:
            # Said at once, for who comes next: the connection itself says so a moment later (66 of 97 times).
            if used is not None:
                used.lost.set()
            raise
        except TimeoutError:
            if used is not None and not used.blocked:
                await used.close()
            raise

    def doubt(self) -> None:
        """Make the prefix's exchanges and queues again before the next message: one of them is missing."""
        self._doubtful = True

    async def _ready_channel(self) -> aiormq.Channel:
        async with self._opening:
            if self._connection is None or self._connection.lost.is_set():
                self._connection = await connect(self._url, name=self._name)
                self._channel = None
                self._largest_bytes = sys.maxsize
            if self._doubtful:
                # An exchange or a queue may be what is missing.
                await ensure(self._connection.amqp, self._topology)
                self._doubtful = False
            if self._channel is None or self._channel.is_closed:
                # Kept: its end is what closes the channel.
                self._opened = await self._connection.amqp.channel(publisher_confirms=True, on_return_raises=True)
                self._channel = unlimited(await self._opened.get_underlay_channel())
            return self._channel
