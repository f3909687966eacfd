"""A producer and a consumer that outlast whatever happens to the broker and to their connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError
from pydantic import SecretStr

from tests.chaos.evidence import Reply
from worker.broker import BROKER_ERRORS, BrokerConnection, connect, strays_told
from worker.errors import BrokerUnavailable, StartupError

_CONFIRM_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.2
_FAILED: Final = (BrokerUnavailable, StartupError, DeliveryError, *BROKER_ERRORS)
"""A broker that has just started refuses users for a moment: a StartupError, elsewhere."""


class Producer:
    """Publishes persistent, mandatory and with confirms, as the contract asks for."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = SecretStr(url)
        self._prefix = prefix
        self._connection: BrokerConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._opening = asyncio.Lock()
        self.repeated = 0
        """How many publishes had to be made again: whether the first had arrived, nobody knew."""

    async def publish(self, run_id: str, body: bytes, routing_key: str) -> None:
        """Publish a request until its publish is confirmed."""
        while True:
            used = None
            try:
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    with strays_told():
                        used, exchange = await self._ready()
                        message = Message(
                            body,
                            content_type="application/json",
                            delivery_mode=DeliveryMode.PERSISTENT,
                            message_id=run_id,
                        )
                        await exchange.publish(message, routing_key, mandatory=True)
            except _FAILED:
                self.repeated += used is not None
                if used is not None and used is self._connection:
                    self._connection = None
                    await used.close()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _ready(self) -> tuple[BrokerConnection, AbstractExchange]:
        async with self._opening:
            if self._connection is None or self._connection.lost.is_set() or self._exchange is None:
                self._connection = await connect(self._url, name="chaos producer")
                channel = await self._connection.amqp.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = await channel.get_exchange(f"{self._prefix}.requests", ensure=False)
            return self._connection, self._exchange


class Consumer:
    """Takes every reply of the results queue, and acknowledges it."""

    def __init__(self, url: str, prefix: str, heard: Callable[[Reply], None]) -> None:
        self._url = SecretStr(url)
        self._queue = f"{prefix}.results"
        self._heard = heard

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen in this block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with suppress(*_FAILED), strays_told():
                connection = await connect(self._url, name="chaos consumer")
                try:
                    channel = await connection.amqp.channel()
                    await channel.set_qos(prefetch_count=200)
                    queue = await channel.get_queue(self._queue, ensure=False)
                    channel.close_callbacks.add(lambda *_, lost=connection.lost: lost.set())
                    await queue.consume(self._received)
                    await connection.lost.wait()
                finally:
                    await connection.close()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _received(self, message: AbstractIncomingMessage) -> None:
        self._heard(Reply(message.message_id or "", message.body))
        with suppress(*_FAILED), strays_told():
            await message.ack()
