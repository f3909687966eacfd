"""Consuming: a connection of its own, a channel for each queue, and a new one whenever one is lost.

aio-pika's robust connection is not used: it brings consumers back by itself, also for a partition that is no longer
ours, and knows nothing of the deliveries that died with the channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from worker.broker import BROKER_ERRORS, BrokerConnection, close_quietly, connect, strays_told
from worker.cancellation import was_cancelled
from worker.errors import BrokerUnavailable, StartupError
from worker.frames import unlimited
from worker.intake.delivery import ChannelLife, Delivery
from worker.intake.topology import Topology, ensure
from worker.measures import UNMEASURED, Measures, Tried

_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_DECLARE_SECONDS: Final = 5.0
_STEADY_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 15.0
LONGEST_HELD_SECONDS: Final = 900.0
"""Half of RabbitMQ's acknowledgement time-out as it is set up. A channel is opened anew before its oldest delivery
meets that, because its turn takes long, or waits behind others of its session."""

_log = structlog.get_logger()


class Consumers:
    """Consumes the queues that are wanted, and gives back at once what no longer is."""

    def __init__(
        self,
        url: SecretStr,
        topology: Topology,
        *,
        prefetch: int,
        received: Callable[[Delivery], None],
        lost: Callable[[], None],
        name: str,
        announced: bool = True,
        longest_held_seconds: float = LONGEST_HELD_SECONDS,
        measures: Measures = UNMEASURED,
    ) -> None:
        """`received` is called with each delivery, in order; `lost` after some deliveries have died.

        The log says which partitions are wanted and consumed, if they are `announced`.
        """
        self._measures = measures
        self._url = url
        self._topology = topology
        self._prefetch = prefetch
        self._received = received
        self._lost = lost
        self._name = name
        self._announced = announced
        self._longest_held_seconds = longest_held_seconds
        self._changed = asyncio.Event()
        self._told: Callable[[], None] = lambda: None
        self._active: dict[ChannelLife, str] = {}
        self._lives: set[ChannelLife] = set()
        self._ending: set[asyncio.Task[None]] = set()
        """The consumers of what was given up, until their channels are closed."""
        self.wanted: frozenset[str] = frozenset()
        """The queues that are to be consumed."""
        self._said: frozenset[str] = frozenset()
        self.connected = False
        """Whether there is a connection to consume over."""
        self.connections = 0
        """How many connections were made so far."""

    @property
    def consuming(self) -> frozenset[str]:
        """The queues with a consumer of ours now; the broker may have it stand by behind another worker's."""
        return frozenset(queue for life, queue in self._active.items() if life.alive)

    @property
    def partitions(self) -> int:
        """How many partitions are consumed now."""
        return len(self.consuming - {self._topology.unrouted})

    @property
    def held_seconds(self) -> float:
        """How long the oldest unacknowledged delivery was held on its channel; 0: there is none."""
        return max((life.held_seconds for life in self._lives if life.alive), default=0.0)

    def listen(self, told: Callable[[], None]) -> None:
        """Have `told` called whenever a connection is made or lost."""
        self._told = told

    def want(self, queues: frozenset[str]) -> None:
        """Consume these queues and no others. What is given up dies here and now; its channel is closed for it."""
        if queues == self.wanted:
            return
        if self._announced:
            _log.info("partitions_wanted", queues=len(queues), gained=len(queues - self.wanted))
        self.wanted = queues
        for life, queue in self._active.items():
            if queue not in queues:
                life.end()
        self._lost()
        self._changed.set()
        self._say_if_all_are_consumed()

    async def run(self) -> None:
        """Consume what is wanted, reconnecting as long as it takes, until the task is cancelled.

        When cancelled it closes the channels at once: what is unacknowledged goes back to the head, in order.
        """
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
                self._measures.retried(Tried.CONNECT_RABBITMQ)
                continue
            self.connections += 1
            since = time.monotonic()
            try:
                self._now_connected(connected=True)
                with suppress(BrokerUnavailable), strays_told():
                    await self._consume_wanted(connection)
            finally:
                self._now_connected(connected=False)
                self._end_all()
                await connection.close()
            tries = 0 if time.monotonic() - since > _STEADY_SECONDS else tries + 1
            await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])

    def _now_connected(self, *, connected: bool) -> None:
        self.connected = connected
        self._said = frozenset()
        self._told()

    async def _consume_wanted(self, connection: BrokerConnection) -> None:
        """Consume over one connection until it is lost."""
        lost = asyncio.create_task(connection.lost.wait())
        consumers: dict[str, asyncio.Task[None]] = {}
        given_up: dict[str, asyncio.Event] = {}
        try:
            while not lost.done():
                self._changed.clear()
                for queue in consumers.keys() - self.wanted:
                    given_up.pop(queue).set()
                    self._ending.add(consumers.pop(queue))
                for queue in self.wanted - consumers.keys():
                    given_up[queue] = asyncio.Event()
                    keeping = self._keep_consuming(connection, queue, given_up[queue])
                    consumers[queue] = asyncio.create_task(keeping)
                    consumers[queue].add_done_callback(self._ending.discard)
                await self._until_changed(lost, consumers)
            _log.warning("broker_connection_lost", consequence="unfinished requests are delivered again")
        finally:
            # The deliveries die first: nobody may answer what the broker is about to give away.
            self._end_all()
            tasks = [lost, *consumers.values(), *self._ending]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_changed(self, lost: asyncio.Task[Literal[True]], consumers: dict[str, asyncio.Task[None]]) -> None:
        """Wait until the connection is lost or other queues are wanted; raise what a consumer ended with."""
        changed = asyncio.create_task(self._changed.wait())
        try:
            watched: list[asyncio.Task[Any]] = [lost, changed, *consumers.values()]
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        for task in done:
            task.result()

    async def _keep_consuming(self, connection: BrokerConnection, queue: str, given_up: asyncio.Event) -> None:
        """Consume one queue, over a new channel whenever one is lost, as long as the connection lives.

        It ends when the queue is given up. It is not cancelled for that: aiormq closes the channel of a call that is
        cancelled, and if that call was itself closing it, the broker closes the connection.
        """
        tries = 0
        while not (connection.lost.is_set() or given_up.is_set() or was_cancelled()):
            try:
                with strays_told():
                    await self._consume(connection, queue, given_up)
                tries = 0
            except (BrokerUnavailable, *BROKER_ERRORS) as error:
                _log.warning("consumer_failed", queue=queue, reason=f"{type(error).__name__}: {error}"[:300])
                with suppress(BrokerUnavailable, StartupError, *BROKER_ERRORS), strays_told():
                    # The queue may be gone: somebody deleted it, or the broker lost its disk.
                    await ensure(connection.amqp, self._topology)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)]):
                    await given_up.wait()
            tries += 1

    async def _consume(self, connection: BrokerConnection, queue: str, given_up: asyncio.Event) -> None:
        """Consume one queue over one channel, until it is given up, or the channel or its consumer is gone."""
        life = ChannelLife()
        channel = connection.amqp.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda *_: life.end())

        async def on_message(message: AbstractIncomingMessage) -> None:
            # It awaits nothing: the tasks that aio-pika makes of it keep the order of the deliveries.
            if life.alive and not given_up.is_set():
                self._received(Delivery(message=message, source=queue, life=life))

        try:
            await channel.initialize(timeout=_DECLARE_SECONDS)
            underlay = unlimited(await channel.get_underlay_channel())
            # Deleted queue, moved leader, acknowledgement time-out on 4.3: the broker cancels the consumer alone.
            underlay.on_consumer_cancel_callbacks.add(lambda _: life.end())
            await channel.set_qos(prefetch_count=self._prefetch, timeout=_DECLARE_SECONDS)
            self._lives.add(life)
            consumed = await channel.get_queue(queue, ensure=False)
            await consumed.consume(on_message, timeout=_DECLARE_SECONDS)
            # What `want` no longer wants it ends among the active ones: this was none of them yet.
            if was_cancelled() or given_up.is_set() or queue not in self.wanted:
                return
            self._active[life] = queue
            self._say_if_all_are_consumed()
            await self._until_dead(connection, queue, life)
            if queue in self.wanted and not life.alive:
                _log.warning("channel_lost", queue=queue)
        finally:
            self._active.pop(life, None)
            life.end()
            self._lives.discard(life)
            self._lost()
            await close_quietly(channel)

    async def _until_dead(self, connection: BrokerConnection, queue: str, life: ChannelLife) -> None:
        """Wait until the channel's life has ended, or should end. Now and then the broker is asked for its consumer.

        A consumer can be dead without a word: its channel open, and nobody is sent anything.
        """
        while life.alive:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_CHECK_SECONDS, self._longest_held_seconds / 4)):
                    await life.ended.wait()
                    return
            if life.held_seconds > self._longest_held_seconds:
                # What is returned comes again in order; a turn that runs goes on, and is answered then.
                _log.info("channel_reopened", queue=queue, held_seconds=round(life.held_seconds))
                return
            if await _consumers_of(connection, queue) == 0:
                _log.warning("consumer_dead", queue=queue, action="consuming it again")
                return

    def _say_if_all_are_consumed(self) -> None:
        if self._announced and self.wanted and self.consuming == self.wanted != self._said:
            _log.info("worker_consuming", queues=len(self.wanted))
            self._said = self.wanted

    def _end_all(self) -> None:
        for life in self._lives:
            life.end()
        self._lost()


async def _consumers_of(connection: BrokerConnection, queue: str) -> int | None:
    """Return how many consumers the broker counts for a queue; None if it does not say."""
    channel = connection.amqp.channel(publisher_confirms=False)
    try:
        with strays_told():
            await channel.initialize(timeout=_DECLARE_SECONDS)
            declared = await channel.declare_queue(queue, passive=True, timeout=_DECLARE_SECONDS)
    except (BrokerUnavailable, *BROKER_ERRORS):
        return None
    else:
        return declared.declaration_result.consumer_count
    finally:
        await close_quietly(channel)
