"""Consuming: a connection of its own, a channel for each queue, and a new one whenever one is lost.

aio-pika's robust connection is not used: it brings consumers back by itself, also for a partition that is no longer
ours, and knows nothing of the deliveries that died with the channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from worker.broker import BROKER_ERRORS, BrokerConnection, close_quietly, connect
from worker.errors import BrokerUnavailable, StartupError
from worker.intake.delivery import ChannelLife, Delivery
from worker.intake.topology import Topology, apply

_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_DECLARE_SECONDS: Final = 5.0
_STEADY_SECONDS: Final = 5.0

_log = structlog.get_logger()


class Consumers:
    """Consumes some queues until told to stop."""

    def __init__(
        self,
        url: SecretStr,
        topology: Topology,
        *,
        prefetch: int,
        received: Callable[[Delivery], None],
        lost: Callable[[], None],
        name: str,
    ) -> None:
        """`received` is called with each delivery, in order; `lost` after some deliveries have died."""
        self._url = url
        self._topology = topology
        self._prefetch = prefetch
        self._received = received
        self._lost = lost
        self._name = name
        self._wanted: frozenset[str] = frozenset()
        self._active: set[str] = set()
        self._lives: set[ChannelLife] = set()
        self.connections = 0
        """How many connections were made so far."""

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a consumer of ours now; the broker may have it stand by behind another worker's."""
        return frozenset(self._active)

    async def run(self, queues: Sequence[str]) -> None:
        """Consume the queues, reconnecting as long as it takes, until the task is cancelled.

        When cancelled it closes the channels at once: what is unacknowledged goes back to the head, in order.
        """
        self._wanted = frozenset(queues)
        tries = 0
        while True:
            try:
                connection = await connect(self._url, name=self._name)
            # A running worker outlasts also what would be an operator's mistake at the start: a broker that comes
            # back refuses users and virtual hosts for a while.
            except (BrokerUnavailable, StartupError) as error:
                _log.warning("broker_unavailable", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
                tries += 1
                continue
            self.connections += 1
            since = time.monotonic()
            try:
                await self._consume_all(connection, queues)
            finally:
                self._end_all()
                await connection.close()
            tries = 0 if time.monotonic() - since > _STEADY_SECONDS else tries + 1
            await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])

    async def _consume_all(self, connection: BrokerConnection, queues: Sequence[str]) -> None:
        """Consume over one connection until it is lost."""
        lost = asyncio.create_task(connection.lost.wait())
        consumers = [asyncio.create_task(self._keep_consuming(connection, queue)) for queue in queues]
        try:
            done, _ = await asyncio.wait([lost, *consumers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            _log.warning("broker_connection_lost", consequence="unfinished requests are delivered again")
        finally:
            # The deliveries die first: nobody may answer what the broker is about to give away.
            self._end_all()
            for task in (lost, *consumers):
                task.cancel()
            await asyncio.gather(lost, *consumers, return_exceptions=True)

    async def _keep_consuming(self, connection: BrokerConnection, queue: str) -> None:
        """Consume one queue, over a new channel whenever one is lost, as long as the connection lives."""
        tries = 0
        while not connection.lost.is_set():
            try:
                await self._consume(connection, queue)
                tries = 0
            except BROKER_ERRORS as error:
                _log.warning("consumer_failed", queue=queue, reason=f"{type(error).__name__}: {error}"[:300])
                with suppress(StartupError, *BROKER_ERRORS):
                    # The queue may be gone: somebody deleted it, or the broker lost its disk.
                    await apply(connection.amqp, self._topology)
            await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
            tries += 1

    async def _consume(self, connection: BrokerConnection, queue: str) -> None:
        """Consume one queue over one channel, until the channel or its consumer is gone."""
        life = ChannelLife()
        channel = connection.amqp.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda *_: life.end())

        async def on_message(message: AbstractIncomingMessage) -> None:
            # It awaits nothing: the tasks that aio-pika makes of it keep the order of the deliveries.
            if life.alive:
                self._received(Delivery(message=message, source=queue, life=life))

        try:
            await channel.initialize(timeout=_DECLARE_SECONDS)
            underlay = await channel.get_underlay_channel()
            # Deleted queue, moved leader, acknowledgement time-out on 4.3: the broker cancels the consumer alone.
            underlay.on_consumer_cancel_callbacks.add(lambda _: life.end())
            await channel.set_qos(prefetch_count=self._prefetch, timeout=_DECLARE_SECONDS)
            self._lives.add(life)
            consumed = await channel.get_queue(queue, ensure=False)
            await consumed.consume(on_message, timeout=_DECLARE_SECONDS)
            self._active.add(queue)
            if self._active == self._wanted:
                _log.info("worker_consuming", queues=len(self._active))
            await life.ended.wait()
            _log.warning("channel_lost", queue=queue)
        finally:
            self._active.discard(queue)
            life.end()
            self._lives.discard(life)
            self._lost()
            await close_quietly(channel)

    def _end_all(self) -> None:
        for life in self._lives:
            life.end()
        self._lost()
