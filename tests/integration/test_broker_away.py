"""RabbitMQ restarted, short of memory, or set to take small messages only: turns finish, and replies follow."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aio_pika import Message
from pydantic import JsonValue, SecretStr

from tests.acceptance.stage import Gates, database_of_its_own, worker_on
from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.own_servers import memory_alarm, own_rabbitmq
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.intake.topology import Topology
from worker.replies.publisher import MessageTooLarge, Publisher
from worker.sandbox import Sandbox
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGEST_BYTES = 100_000
QUICKLY_SECONDS = 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RabbitmqNode]:
    async with own_rabbitmq(f"max_message_size = {LARGEST_BYTES}\n") as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def postgres_url(sandbox: Sandbox, template: str) -> AsyncIterator[str]:
    async with database_of_its_own(sandbox, template) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="module")
async def own(node: RabbitmqNode, postgres_url: str) -> Settings:
    """Settings with that node."""
    return Settings(
        amqp_url=SecretStr(node.url),
        postgres_url=SecretStr(postgres_url),
        prefix=f"t-{uuid.uuid4().hex[:8]}",
        partitions=2,
        prefetch=32,
        drain_timeout=5,
    )


@pytest_asyncio.fixture(loop_scope="module")
async def database(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    database = await asyncpg.connect(postgres_url)
    yield database
    await database.close()


async def is_stored(database: asyncpg.Connection, runs: int) -> bool:
    """Whether so many runs are, at least: the turns behind them go on until the loss of the connection is noticed."""
    return bool(await database.fetchval("select count(*) from ai.receipts") >= runs)


# --- restarted ---


@pytest.mark.parametrize("happens", [pytest.param("restarted", marks=pytest.mark.slow), "crashed"])
async def test_turns_that_run_when_it_is_restarted_are_committed_and_replies_follow(
    own: Settings, node: RabbitmqNode, database: asyncpg.Connection, happens: str
) -> None:
    gate = Gate()
    async with worker_of(own, gate.executor, echo) as worker:
        async with TestBroker(node.url, own.prefix) as broker:
            running = [await broker.ask(f"s{number}", team_id="gate") for number in range(4)]
            await eventually(lambda: len(gate.started) == 4)
            behind = [await broker.ask(f"s{number}", team_id="gate") for number in range(4)]
        await asyncio.to_thread(node.stop if happens == "restarted" else node.kill)
        try:
            gate.open.set()
            await eventually(partial(is_stored, database, 4))
        finally:
            await asyncio.to_thread(node.start)
        async with TestBroker(node.url, own.prefix) as broker:
            await broker.replies_of([*running, *behind])
            await broker.reply(await broker.ask("s1"))
            for number in range(own.partitions):
                assert await broker.depth(f"requests.{number}") == 0
    assert worker.consumers.connections >= 2
    assert Counter(gate.started) == Counter([*running, *behind]), "each was taken once"


async def test_told_to_stop_while_it_is_away_a_worker_ends_in_time(
    own: Settings, node: RabbitmqNode, tmp_path: Path
) -> None:
    gates = Gates(tmp_path)
    async with worker_on(own, gates) as worker:
        await worker.consuming()
        async with TestBroker(node.url, own.prefix) as broker:
            await broker.ask("s1", "gate", team_id="gated")
            await gates.reached("gate")
        await asyncio.to_thread(node.stop)
        try:
            gates.open("gate")
            await worker.logged("turn_finished")
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.exited(seconds=QUICKLY_SECONDS) == 0
        finally:
            await asyncio.to_thread(node.start)


# --- an alarm ---


async def test_during_an_alarm_turns_finish_and_their_replies_follow_when_it_is_over(
    own: Settings, node: RabbitmqNode, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(own, gate.executor) as worker, TestBroker(node.url, own.prefix) as broker:
        asked = [await broker.ask(f"s{number}", team_id="gate") for number in range(6)]
        await eventually(lambda: len(gate.started) == 6)
        async with memory_alarm(node):
            gate.open.set()
            await eventually(partial(is_stored, database, 6))
            # What was published first is taken, and has the connection blocked.
            await eventually(lambda: worker.condition().problem() is not None)
            problem = worker.condition().problem()
            assert worker.condition().consuming
        await broker.replies_of(asked)
        await eventually(lambda: worker.condition().problem() is None)
    assert problem is not None
    assert "alarm" in problem
    assert Counter(gate.started) == Counter(asked)
    assert Counter(reply.message_id for reply in broker.replies) == Counter(asked), "each was sent once"


@pytest.mark.slow
async def test_told_to_stop_during_an_alarm_a_worker_ends_in_time(
    own: Settings, node: RabbitmqNode, database: asyncpg.Connection, tmp_path: Path
) -> None:
    gates = Gates(tmp_path)
    async with worker_on(own, gates) as worker, TestBroker(node.url, own.prefix) as broker:
        await worker.consuming()
        for number in range(6):
            await broker.ask(f"s{number}", "gate", team_id="gated")
        await gates.reached("gate", times=6)
        async with memory_alarm(node):
            gates.open("gate")
            await eventually(partial(is_stored, database, 6))
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.exited(seconds=QUICKLY_SECONDS) == 0


async def test_a_message_that_nobody_wants_any_more_waits_for_no_end_of_an_alarm(
    own: Settings, node: RabbitmqNode
) -> None:
    publisher = Publisher(own.amqp_url, Topology(own.prefix, own.partitions), name="test")
    wanted = True

    def publishing(number: int) -> asyncio.Task[bool]:
        sent = publisher.publish(
            Message(b"x", message_id=str(number)),
            exchange="",
            routing_key="nowhere",
            mandatory=False,
            wanted=lambda: wanted,
        )
        return asyncio.create_task(sent)

    try:
        await publisher.open()
        async with memory_alarm(node):
            under_way = [publishing(number) for number in range(5)]
            await eventually(lambda: publisher.blocked)
            under_way.append(publishing(5))
            wanted = False
            async with asyncio.timeout(5):
                await asyncio.gather(*under_way)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await publisher.close()


# --- a small max_message_size ---


async def test_a_reply_larger_than_it_is_set_to_take_is_sent_without_its_answer_and_no_other_reply_is_lost(
    own: Settings, node: RabbitmqNode, database: asyncpg.Connection
) -> None:
    @executor("sized")
    async def sized(turn: Turn) -> JsonValue:
        return "x" * int(turn.input)

    async with worker_of(own, sized) as worker, TestBroker(node.url, own.prefix) as broker:
        large = await broker.ask("s1", str(2 * LARGEST_BYTES), team_id="sized")
        small = [await broker.ask(f"s{number}", "10", team_id="sized") for number in range(20)]
        await broker.replies_of([large, *small])
        reply = await broker.reply(large)
        again = await broker.reply(await broker.ask("s1", str(3 * LARGEST_BYTES), team_id="sized"))
        await eventually(lambda: len(worker.mailboxes) == 0)
    assert (reply["status"], reply["content"], reply["error"]["code"]) == ("COMPLETED", None, "reply_too_large")
    assert again["error"]["code"] == "reply_too_large"
    stored = json.loads(await database.fetchval("select reply from ai.receipts where run_id = $1", large))
    assert len(stored["content"]) == 2 * LARGEST_BYTES
    contents = {one.message_id: json.loads(one.body)["content"] for one in broker.replies}
    assert all(contents[run_id] == "x" * 10 for run_id in small)


async def test_what_the_broker_takes_is_asked_for_once_and_then_known(own: Settings) -> None:
    publisher = Publisher(own.amqp_url, Topology(own.prefix, own.partitions), name="test")
    try:
        await publisher.open()
        channel = publisher._channel
        for _ in range(3):
            with pytest.raises(MessageTooLarge) as raised:
                await publisher.publish(
                    Message(b"x" * (LARGEST_BYTES + 1)),
                    exchange="",
                    routing_key="nowhere",
                    mandatory=False,
                    wanted=lambda: True,
                )
            assert raised.value.largest_bytes == LARGEST_BYTES
            assert publisher._channel is channel, "it cost one channel, the first"
    finally:
        await publisher.close()
