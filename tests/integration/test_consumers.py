"""Consumers whose channel, connection, queue or consumer is lost: each partition is consumed again, and once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import aio_pika
import asyncpg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.broker import TestBroker
from tests.support.fleet import Gate, Looking, a_session_of, echo
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.broker import connected
from worker.intake import partitions
from worker.intake.delivery import Delivery
from worker.intake.partitions import Consumers
from worker.intake.topology import Topology, apply
from worker.settings import Settings

PARTITIONS = 4
CONSUMING = "consumers of the test"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitions": PARTITIONS})


@pytest.fixture
def looking(settings: Settings, database: asyncpg.Connection, broker: TestBroker) -> Looking:
    return Looking(settings, database, broker)


def all_sessions(settings: Settings) -> list[str]:
    return [a_session_of(partition, settings) for partition in range(settings.partitions)]


@asynccontextmanager
async def consumers_of(
    settings: Settings, *, prefetch: int = 8, received: Callable[[Delivery], None] = lambda _: None
) -> AsyncIterator[tuple[Consumers, Topology]]:
    """Consumers that no fleet tells what to consume."""
    topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
    async with connected(settings.amqp_url, name="test") as connection:
        await apply(connection.amqp, topology)
    consumers = Consumers(
        settings.amqp_url, topology, prefetch=prefetch, received=received, lost=lambda: None, name="test"
    )
    running = asyncio.create_task(consumers.run(), name=CONSUMING)
    try:
        yield consumers, topology
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# --- wanted, and no longer wanted ---


async def test_what_is_no_longer_wanted_is_given_up_for_good(settings: Settings, broker: TestBroker) -> None:
    async with consumers_of(settings) as (consumers, topology):
        everything = frozenset(topology.partition(number) for number in range(PARTITIONS))
        consumers.want(everything)
        await eventually(lambda: consumers.consuming == everything)
        kept = frozenset({topology.partition(0)})
        consumers.want(kept)
        await eventually(lambda: consumers.consuming == kept and not consumers._ending, seconds=5)
        await broker.ask(a_session_of(1, settings))
        # A channel that is not closed yet may be sent it first.
        await eventually(partial(left, broker, "requests.1", 1), seconds=5)


async def test_what_is_no_longer_wanted_when_its_consumer_has_just_begun_is_given_up(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that stayed would keep the partition from its new owner for good."""
    consume = aio_pika.Queue.consume
    async with consumers_of(settings) as (consumers, topology):
        kept, given_up = topology.partition(0), topology.partition(1)

        async def consume_and_change(queue: aio_pika.Queue, *arguments: Any, **options: Any) -> str:
            tag = await consume(queue, *arguments, **options)
            if queue.name == given_up:
                consumers.want(frozenset({kept}))
            return tag

        monkeypatch.setattr(aio_pika.Queue, "consume", consume_and_change)
        consumers.want(frozenset({kept, given_up}))
        await eventually(lambda: consumers.consuming == consumers.wanted == {kept}, seconds=5)
        await broker.ask(a_session_of(1, settings))
        await eventually(partial(left, broker, "requests.1", 1), seconds=5)


async def left(broker: TestBroker, queue: str, messages: int) -> bool:
    return await broker.depth(queue) == messages


@pytest.mark.parametrize("call", ["Channel.set_qos", "Queue.consume"])
async def test_told_to_stop_while_it_begins_to_consume_it_stops_also_when_the_client_swallows_that(
    settings: Settings,
    broker: TestBroker,  # noqa: ARG001 - it deletes the queues
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """asyncio.wait_for of Python 3.11, which aiormq uses, drops a cancellation that comes together with the answer."""
    owner = getattr(aio_pika, call.partition(".")[0])
    name = call.partition(".")[2]
    original, answered = getattr(owner, name), asyncio.Event()

    async def swallowing(*arguments: Any, **options: Any) -> Any:
        answer = await original(*arguments, **options)
        if not answered.is_set():
            answered.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(owner, name, swallowing)
    async with consumers_of(settings) as (consumers, topology):
        (running,) = (task for task in asyncio.all_tasks() if task.get_name() == CONSUMING)
        consumers.want(frozenset({topology.partition(0)}))
        await answered.wait()
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=8)
        assert done, "it still consumes"


async def test_partitions_given_up_in_the_middle_of_a_flood_do_not_hold_up_the_others(
    settings: Settings, broker: TestBroker
) -> None:
    """What is still sent to a channel that is closing must leave the connection's reader free."""
    acks: set[asyncio.Task[None]] = set()

    def acknowledge(delivery: Delivery) -> None:
        acks.add(asyncio.create_task(delivery.ack()))

    async with consumers_of(settings, prefetch=256, received=acknowledge) as (consumers, topology):
        queues = [topology.partition(number) for number in range(PARTITIONS)]
        await asyncio.gather(*(broker.ask(a_session_of(number % PARTITIONS, settings)) for number in range(4000)))
        for tenth in range(10):
            consumers.want(frozenset(queues))
            await asyncio.sleep(tenth / 100)
            consumers.want(frozenset(queues[:1]))
        await eventually(partial(taken, broker, "requests.0"), seconds=10)
        consumers.want(frozenset(queues))
        for number in range(PARTITIONS):
            await eventually(partial(taken, broker, f"requests.{number}"), seconds=10)
        assert consumers.connections == 1


async def test_what_is_wanted_again_at_once_is_consumed(settings: Settings, broker: TestBroker) -> None:
    async with consumers_of(settings) as (consumers, topology):
        everything = frozenset(topology.partition(number) for number in range(PARTITIONS))
        for _ in range(3):
            consumers.want(everything)
            await eventually(lambda: consumers.consuming == everything)
            consumers.want(frozenset())
        consumers.want(everything)
        await broker.ask(a_session_of(1, settings))
        await eventually(partial(taken, broker, "requests.1"))


async def taken(broker: TestBroker, queue: str) -> bool:
    return await left(broker, queue, 0)


async def test_that_all_is_consumed_is_logged_also_when_less_is_wanted_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, broker: TestBroker
) -> None:
    """Two workers that start at the same moment: each first wants everything, and then its share."""
    consume, late = aio_pika.Queue.consume, asyncio.Event()

    async def consume_late(queue: aio_pika.Queue, *arguments: Any, **options: Any) -> str:
        tag = await consume(queue, *arguments, **options)
        if queue.name.endswith(".0"):
            await late.wait()
        return tag

    monkeypatch.setattr(aio_pika.Queue, "consume", consume_late)
    with capture_logs() as logged:
        async with consumers_of(settings) as (consumers, topology):
            first, second = topology.partition(0), topology.partition(1)
            consumers.want(frozenset({first, second}))
            await eventually(lambda: consumers.consuming == {second})
            late.set()
            consumers.want(frozenset({first}))
            await eventually(lambda: consumers.consuming == {first})
            await broker.ask(a_session_of(0, settings))
            await eventually(partial(taken, broker, "requests.0"))
    assert len([event for event in logged if event["event"] == "worker_consuming"]) == 1


# --- lost ---


async def test_after_all_connections_were_lost_each_partition_is_consumed_once(
    settings: Settings, broker: TestBroker, looking: Looking
) -> None:
    gate = Gate()
    async with Proxy(settings.amqp_url.get_secret_value()) as cable:
        by_cable = settings.model_copy(update={"amqp_url": SecretStr(cable.url)})
        async with worker_of(by_cable, gate.executor) as first, worker_of(by_cable, gate.executor) as second:
            await looking.settled(first, second)
            asked = [await broker.ask(session, team_id="gate") for session in all_sessions(settings) * 3]
            await eventually(lambda: len(gate.started) == PARTITIONS)
            before = [worker.consumers.connections for worker in (first, second)]
            cable.cut()
            await eventually(lambda: first.consumers.connections > before[0])
            await eventually(lambda: second.consumers.connections > before[1])
            await looking.settled(first, second)
            gate.open.set()
            await broker.replies_of(asked)
    assert Counter(gate.started) == Counter(asked), "each was taken once"


async def test_a_channel_that_the_broker_closes_is_opened_again_and_the_others_stay(
    settings: Settings, broker: TestBroker, looking: Looking
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await looking.settled(worker)
        sessions = all_sessions(settings)
        asked = [await broker.ask(session, team_id="gate") for session in sessions * 2]
        await eventually(lambda: len(gate.started) == PARTITIONS)
        deliveries = {session: worker.mailboxes._boxes[session][0] for session in sessions}
        # A tag that nobody gave out: an error that costs the channel.
        await deliveries[sessions[0]].delivery.message.channel.basic_ack(delivery_tag=9_999)
        await eventually(lambda: not deliveries[sessions[0]].alive)
        await looking.settled(worker)
        assert [session for session in sessions if deliveries[session].alive] == sessions[1:]
        gate.open.set()
        await broker.replies_of(asked)
    assert worker.consumers.connections == 1
    assert Counter(gate.started) == Counter(asked), "each was taken once"


async def test_a_queue_that_was_deleted_is_consumed_again_by_its_owner(
    settings: Settings, broker: TestBroker, looking: Looking
) -> None:
    async with worker_of(settings, echo) as first, worker_of(settings, echo) as second:
        await looking.settled(first, second)
        owners = await looking.owners()
        await broker.channel.queue_delete(f"{settings.prefix}.requests.0")
        await looking.settled(first, second)
        assert await looking.owners() == owners
        for session in all_sessions(settings):
            await broker.reply(await broker.ask(session))


async def test_a_consumer_that_the_broker_no_longer_counts_is_replaced(
    settings: Settings, broker: TestBroker, looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channel is open, and it is sent nothing: as after some reconnects of the client library."""
    consumed: dict[str, tuple[aio_pika.Queue, str]] = {}
    consume = aio_pika.Queue.consume

    async def consume_noted(queue: aio_pika.Queue, *arguments: Any, **options: Any) -> str:
        tag = await consume(queue, *arguments, **options)
        consumed[queue.name] = queue, tag
        return tag

    monkeypatch.setattr(aio_pika.Queue, "consume", consume_noted)
    monkeypatch.setattr(partitions, "_CHECK_SECONDS", 0.2)
    async with worker_of(settings, echo) as worker:
        await looking.settled(worker)
        queue, tag = consumed[f"{settings.prefix}.requests.0"]
        channel = await queue.channel.get_underlay_channel()
        await channel.basic_cancel(tag)
        await eventually(lambda: consumed[queue.name][1] != tag)
        await broker.reply(await broker.ask(a_session_of(0, settings)))
