"""A producer and a consumer that outlast whatever happens to the broker and to their connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError
from pydantic import SecretStr
from typing_extensions import override

from tests.chaos.evidence import Event, Reply, Upset
from tests.chaos.upsets import Upsets
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
        self._exchanges: dict[str, AbstractExchange] = {}
        self._opening = asyncio.Lock()
        self.repeated = 0
        """How many publishes had to be made again: whether the first had arrived, nobody knew."""

    async def publish(self, run_id: str, body: bytes, routing_key: str) -> None:
        """Publish a request until its publish is confirmed."""
        await self._publish("requests", body, routing_key, run_id)

    async def cancel(self, run_id: str, session_id: str, user_id: str | None) -> None:
        """Say that a run is cancelled, until that is confirmed."""
        body = {"type": "cancel", "run_id": run_id, "session_id": session_id, "user_id": user_id}
        await self._publish("control", json.dumps(body).encode(), "", None)

    async def _publish(self, exchange: str, body: bytes, routing_key: str, message_id: str | None) -> None:
        while True:
            used = None
            try:
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    with strays_told():
                        used, exchanges = await self._ready()
                        message = Message(
                            body,
                            content_type="application/json",
                            delivery_mode=DeliveryMode.PERSISTENT,
                            message_id=message_id,
                        )
                        await exchanges[exchange].publish(message, routing_key, mandatory=True)
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

    async def _ready(self) -> tuple[BrokerConnection, dict[str, AbstractExchange]]:
        async with self._opening:
            if self._connection is None or self._connection.lost.is_set() or not self._exchanges:
                self._connection = await connect(self._url, name="chaos producer")
                channel = await self._connection.amqp.channel(publisher_confirms=True, on_return_raises=True)
                self._exchanges = {
                    name: await channel.get_exchange(f"{self._prefix}.{name}", ensure=False)
                    for name in ("requests", "control")
                }
            return self._connection, self._exchanges


class _Consumer:
    """Consumes, over a new connection where one is lost."""

    def __init__(self, url: str, name: str) -> None:
        self._url = SecretStr(url)
        self._name = name

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
                connection = await connect(self._url, name=self._name)
                try:
                    channel = await connection.amqp.channel()
                    channel.close_callbacks.add(lambda *_, lost=connection.lost: lost.set())
                    with self._consuming():
                        await self._consume(channel)
                        await connection.lost.wait()
                finally:
                    await connection.close()
            await asyncio.sleep(_RETRY_SECONDS)

    @contextmanager
    def _consuming(self) -> Iterator[None]:
        """Enclose the time of one connection."""
        yield

    async def _consume(self, channel: AbstractChannel) -> None:
        """Begin to consume."""
        raise NotImplementedError


class Consumer(_Consumer):
    """Takes every reply of the results queue, and acknowledges it."""

    def __init__(self, url: str, prefix: str, heard: Callable[[Reply], None]) -> None:
        super().__init__(url, "chaos consumer")
        self._queue = f"{prefix}.results"
        self._heard = heard

    @override
    async def _consume(self, channel: AbstractChannel) -> None:
        await channel.set_qos(prefetch_count=200)
        queue = await channel.get_queue(self._queue, ensure=False)
        await queue.consume(self._received)

    async def _received(self, message: AbstractIncomingMessage) -> None:
        self._heard(Reply(message.message_id or "", message.body))
        with suppress(*_FAILED), strays_told():
            await message.ack()


class Watcher(_Consumer):
    """Takes every event, and knows when it could not."""

    def __init__(self, url: str, prefix: str, upsets: Upsets) -> None:
        super().__init__(url, "chaos watcher")
        self._exchange = f"{prefix}.events"
        self._upsets = upsets
        self._away = upsets.begin(Upset.UNWATCHED)
        self.events: list[Event] = []
        """All of them, in order."""
        self.ready = asyncio.Event()
        """Whether it has begun to consume."""

    @override
    async def _consume(self, channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        await queue.bind(self._exchange, "#")
        await queue.consume(self._received, no_ack=True)
        self._upsets.end(self._away)
        self.ready.set()

    @override
    @contextmanager
    def _consuming(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._away = self._upsets.begin(Upset.UNWATCHED)

    async def _received(self, message: AbstractIncomingMessage) -> None:
        self.events.append(Event(time.time(), json.loads(message.body)))
