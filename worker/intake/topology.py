"""The exchanges, queues and bindings of a prefix: what the contract names, declared or looked at."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractConnection, ExchangeType
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.exceptions import ChannelAccessRefused

from worker.broker import close_quietly
from worker.errors import StartupError
from worker.intake.slots import SLOTS, partition_of

DELIVERY_LIMIT: Final = 1_000_000
"""Each closed channel counts against all its unacknowledged messages; unset means 20 on RabbitMQ 4, and then
they are dropped. What is poison is judged by the run's own attempts."""

_QUORUM: Final = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
_INEQUIVALENT = re.compile(r"inequivalent arg '(?P<argument>[^']+)' for \w+ '(?P<name>[^']+)'.*?: (?P<what>.*)")


class MayNotDeclare(StartupError):
    """The user has no right to declare it, whether it is there or not."""


@dataclass(frozen=True)
class Exchange:
    """An exchange to declare."""

    name: str
    type: ExchangeType
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queue:
    """A durable queue to declare, and what it is bound to: (exchange, routing key)."""

    name: str
    arguments: dict[str, Any]
    bindings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Topology:
    """The names of a prefix."""

    prefix: str
    partitions: int

    @property
    def requests(self) -> str:
        """The exchange that run requests are published to."""
        return f"{self.prefix}.requests"

    @property
    def unrouted(self) -> str:
        """The exchange and queue of requests without a slot."""
        return f"{self.prefix}.unrouted"

    @property
    def results(self) -> str:
        """The exchange and queue of replies."""
        return f"{self.prefix}.results"

    @property
    def events(self) -> str:
        """The exchange of streaming events."""
        return f"{self.prefix}.events"

    @property
    def control(self) -> str:
        """The exchange and queue of cancel messages."""
        return f"{self.prefix}.control"

    @property
    def dead(self) -> str:
        """The queue of what could not be executed."""
        return f"{self.prefix}.dead"

    @property
    def detour(self) -> str:
        """The exchange that requests go by while the partitions change; its queues' names begin so."""
        return f"{self.prefix}.repartition"

    @property
    def held(self) -> str:
        """The queue of requests that are published while the partitions change."""
        return f"{self.detour}.held"

    def partition(self, number: int) -> str:
        """Return the name of a request queue."""
        return f"{self.prefix}.requests.{number}"

    def request_queue(self, number: int, bindings: tuple[tuple[str, str], ...] = ()) -> Queue:
        """Return one request queue."""
        return Queue(self.partition(number), self._ordered(), bindings)

    def _ordered(self) -> dict[str, Any]:
        to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self.dead}
        return _QUORUM | {"x-single-active-consumer": True} | to_dead

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return every exchange, in the order in which they can be declared."""
        return (
            Exchange(self.unrouted, ExchangeType.FANOUT),
            Exchange(self.requests, ExchangeType.DIRECT, {"alternate-exchange": self.unrouted}),
            Exchange(self.results, ExchangeType.TOPIC),
            Exchange(self.events, ExchangeType.TOPIC),
            Exchange(self.control, ExchangeType.FANOUT),
        )

    def queues(self) -> tuple[Queue, ...]:
        """Return every queue with its bindings."""
        slots: dict[int, list[tuple[str, str]]] = {number: [] for number in range(self.partitions)}
        for slot in SLOTS:
            slots[partition_of(slot, self.partitions)].append((self.requests, slot))
        return (
            Queue(self.dead, dict(_QUORUM)),
            # The last one first: where the first one is, all are, however this was interrupted.
            *(self.request_queue(number, tuple(slots[number])) for number in reversed(slots)),
            Queue(self.unrouted, self._ordered(), ((self.unrouted, ""),)),
            Queue(self.results, dict(_QUORUM), ((self.results, "#"),)),
            Queue(self.control, dict(_QUORUM), ((self.control, ""),)),
        )


async def apply(connection: AbstractConnection, topology: Topology) -> None:
    """Declare all of it; what is there already stays as it is.

    Raises StartupError, naming the object and the argument, where something of another kind has the name.
    """
    channel = await connection.channel()
    try:
        for exchange in topology.exchanges():
            await _declared(f"exchange {exchange.name!r}", _exchange(exchange, channel))
        for queue in topology.queues():
            await _declared(f"queue {queue.name!r}", _queue(queue, channel))
            await _declared(f"bindings of queue {queue.name!r}", _bound(queue, await channel.get_underlay_channel()))
    finally:
        await close_quietly(channel)


async def ensure(connection: AbstractConnection, topology: Topology) -> None:
    """Declare all of it, or, as a user who may not, see that all of it is there.

    Raises StartupError as `apply` does, and where something is missing that this user may not make.
    """
    try:
        await apply(connection, topology)
    except MayNotDeclare as error:
        if missing := await _problems(connection, topology, declaring=False):
            raise StartupError(f"{missing[0]}, as a user who may declare ({error})") from None


async def check_partitions(connection: AbstractConnection, topology: Topology) -> None:
    """Raise StartupError if the prefix has another number of request queues already.

    Its slots would be bound twice then, and each request be in two queues. Workers know the number from Postgres;
    this is for who has only the broker. So it is while they are changed.
    """
    if await _is_changing(connection, topology):
        raise StartupError(_changing(topology))
    numbers = range(topology.partitions + 1)
    there = [number for number in numbers if await _is_there(connection, topology.request_queue(number))]
    more = topology.partitions in there
    fewer = 0 < len(there) < topology.partitions and there == list(range(len(there)))
    if more or fewer:
        found = "more" if more else str(len(there))
        raise StartupError(
            f"TEAMTURN_PARTITIONS is {topology.partitions}, and the prefix {topology.prefix!r} has {found} request "
            "queues: set it to what the workers have"
        )


async def _is_there(connection: AbstractConnection, queue: Queue, *, compared: bool = True) -> bool:
    channel = await connection.channel()
    try:
        await _existing_queue(queue, channel)
        if compared:
            # It is there; a queue of another kind is that mistake and not one about the number of queues.
            with suppress(MayNotDeclare):
                await _declared(f"queue {queue.name!r}", _queue(queue, channel))
    except ChannelNotFoundEntity:
        return False
    finally:
        await close_quietly(channel)
    return True


async def _is_changing(connection: AbstractConnection, topology: Topology) -> bool:
    # Not compared: to compare is to declare, and the change may end meanwhile. A queue made so would say for ever that
    # there is one.
    return await _is_there(connection, Queue(topology.held, {}), compared=False)


def _changing(topology: Topology) -> str:
    return (
        f"the partitions of prefix {topology.prefix!r} are being changed: finish that, teamturn topology repartition "
        "with the same numbers"
    )


async def verify(connection: AbstractConnection, topology: Topology) -> list[str]:
    """Look at each exchange and queue without making any, and return a sentence for each that is wrong.

    Bindings can't be read over AMQP; `apply` repeats them. Of what the user may not declare, the broker tells only
    that it is there.
    """
    changing = [_changing(topology)] if await _is_changing(connection, topology) else []
    return changing + await _problems(connection, topology, declaring=True)


async def may_declare(connection: AbstractConnection, topology: Topology) -> bool:
    """Return whether the user may declare: else `verify` has seen that all is there, and not what its properties are.

    To be asked where nothing is missing: an exchange is declared again.
    """
    channel = await connection.channel()
    first = topology.exchanges()[0]
    try:
        await _declared(f"exchange {first.name!r}", _exchange(first, channel))
    except MayNotDeclare:
        return False
    finally:
        await close_quietly(channel)
    return True


async def _problems(connection: AbstractConnection, topology: Topology, *, declaring: bool) -> list[str]:
    """Look whether each is there and, by declaring what is, whether it is as it should be."""
    problems: list[str] = []
    for exchange in topology.exchanges():
        problems += await _looked_at(
            connection,
            f"exchange {exchange.name!r}",
            partial(_existing_exchange, exchange),
            partial(_exchange, exchange) if declaring else None,
        )
    for queue in topology.queues():
        problems += await _looked_at(
            connection,
            f"queue {queue.name!r}",
            partial(_existing_queue, queue),
            partial(_queue, queue) if declaring else None,
        )
    return problems


def _existing_exchange(exchange: Exchange, channel: AbstractChannel) -> Awaitable[Any]:
    return channel.get_exchange(exchange.name)


def _existing_queue(queue: Queue, channel: AbstractChannel) -> Awaitable[Any]:
    return channel.declare_queue(queue.name, passive=True)


def _exchange(exchange: Exchange, channel: AbstractChannel) -> Awaitable[Any]:
    return channel.declare_exchange(exchange.name, exchange.type, durable=True, arguments=exchange.arguments)


def _queue(queue: Queue, channel: AbstractChannel) -> Awaitable[Any]:
    return channel.declare_queue(queue.name, durable=True, arguments=queue.arguments)


async def _bound(queue: Queue, channel: UnderlayChannel) -> None:
    """Make a queue's bindings, which have no arguments that could clash.

    Only the answers to the first one, which tells whether they may be made, and to the last one are waited for; a
    channel's are made in order. The slots' 256 answers took half of the start's time (0.2 of 0.4 s on two busy cores).
    """
    last = len(queue.bindings) - 1
    for number, (source, key) in enumerate(queue.bindings):
        if 0 < number < last:
            await channel.queue_bind(queue.name, source, routing_key=key, nowait=True)
        else:
            await channel.queue_bind(queue.name, source, routing_key=key)


async def _declared(what: str, declaration: Awaitable[Any]) -> Any:  # noqa: ANN401 - what aio-pika declared
    try:
        return await declaration
    except ChannelPreconditionFailed as error:
        raise StartupError(
            f"the {what} exists with other properties ({_clash(error)}): delete it, or choose another TEAMTURN_PREFIX"
        ) from None
    except ChannelAccessRefused as error:
        raise MayNotDeclare(f"RabbitMQ does not let this user declare the {what} ({_clash(error)})") from None
    except ChannelClosed as error:
        raise StartupError(f"RabbitMQ refuses to declare the {what} ({_clash(error)})") from None


async def _looked_at(
    connection: AbstractConnection,
    what: str,
    look: Callable[[AbstractChannel], Awaitable[Any]],
    declare: Callable[[AbstractChannel], Awaitable[Any]] | None,
) -> list[str]:
    # A failed declaration closes its channel: each object gets one of its own. Looked at first, so that the
    # declaration, by which alone the broker compares arguments, never makes anything.
    channel = await connection.channel()
    try:
        await look(channel)
        if declare is not None:
            await declare(channel)
    except ChannelNotFoundEntity:
        return [f"the {what} is missing: run teamturn topology apply"]
    except ChannelAccessRefused:
        return []
    except ChannelClosed as error:
        return [f"the {what} is not as it should be ({_clash(error)})"]
    finally:
        await close_quietly(channel)
    return []


def _clash(error: Exception) -> str:
    text = str(error)
    found = _INEQUIVALENT.search(text)
    return f"argument {found['argument']}: {found['what']}".rstrip("'\") ") if found else text[:300]
