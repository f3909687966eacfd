"""The crash table, row by row: what a redelivered request finds, and what happens then.

The faults are real: backends are terminated by Postgres, connections to RabbitMQ are cut under the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest
from pydantic import JsonValue, SecretStr

import sql
from tests.support.broker import TestBroker
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.errors import LaneLost
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.sessions.lanes import LaneConnection
from worker.settings import Settings
from worker.worker import Worker

_CUT_LANES = """select pg_terminate_backend(pid) from pg_stat_activity
                where application_name like 'teamturn lane%' and datname = current_database()"""


class Gate:
    """An executor that says when a turn has started, and holds it until it is let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.attempts: list[int] = []
        self.open = asyncio.Event()

        @executor("gate")
        async def gate(turn: Turn) -> JsonValue:
            self.started.append(turn.run_id)
            self.attempts.append(turn.attempt)
            await self.open.wait()
            return f"answer {turn.attempt}"

        self.executor = gate


@pytest.fixture
async def cable(settings: Settings) -> AsyncIterator[Proxy]:
    """The line to RabbitMQ, to be cut."""
    async with Proxy(settings.amqp_url.get_secret_value()) as proxy:
        yield proxy


def by(cable: Proxy, settings: Settings) -> Settings:
    return settings.model_copy(update={"amqp_url": SecretStr(cable.url)})


def all_consuming(worker: Worker, settings: Settings) -> bool:
    return len(worker.consumers.consuming) == settings.partitions + 1


async def test_cut_while_the_turn_runs_it_commits_and_the_redelivery_gets_the_stored_reply(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, cable: Proxy
) -> None:
    gate = Gate()
    async with worker_of(by(cable, settings), gate.executor) as worker:
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        cable.cut()
        await eventually(lambda: worker.consumers.connections == 2)
        await eventually(lambda: all_consuming(worker, settings))
        gate.open.set()
        message = await broker.reply_message(run_id)
    assert gate.started == [run_id], "the turn ran once"
    assert message.body == await database.fetchval("select reply from receipts")


async def test_cut_with_full_mailboxes_the_order_is_kept(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, cable: Proxy
) -> None:
    order: list[str] = []

    @executor("slow")
    async def slow(turn: Turn) -> JsonValue:
        order.append(turn.input)
        await asyncio.sleep(0.01)
        return None

    async with worker_of(by(cable, settings), slow) as worker:
        asked = [await broker.ask("s1", f"{number:03}", team_id="slow") for number in range(100)]
        for cuts, at in enumerate((10, 30, 60), start=1):
            await eventually(partial(_reached, order, at))
            cable.cut()
            await eventually(partial(_reconnected, worker, cuts))
        await broker.replies_of(asked)
    assert order == [f"{number:03}" for number in range(100)], "each once, in order"
    stored = await database.fetchval("select array_agg(run_id order by run_index) from agno_runs")
    assert stored == asked


async def test_a_turn_that_ends_after_its_lane_was_lost_keeps_its_result(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        await database.execute(_CUT_LANES)
        gate.open.set()
        reply = await broker.reply(run_id)
    assert gate.attempts == [1]
    assert (reply["attempt"], reply["content"], reply["turn"]) == (1, "answer 1", 1)
    assert await database.fetchval("select count(*) from agno_runs") == 1
    assert await database.fetchval("select count(*) from turn_attempts") == 0


async def test_a_commit_whose_answer_is_lost_is_settled_by_the_next_claim(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    gate.open.set()
    fetch = LaneConnection._fetch
    lost: list[str] = []

    async def answer_lost(lane: LaneConnection, text: str, *arguments: object) -> list[asyncpg.Record]:
        records = await fetch(lane, text, *arguments)
        if text == sql.COMMIT_TURNS and not lost:
            lost.append(text)
            lane.connection.terminate()
            raise LaneLost("the answer to the commit is lost")
        return records

    monkeypatch.setattr(LaneConnection, "_fetch", answer_lost)
    async with worker_of(settings, gate.executor):
        run_id = await broker.ask("s1", team_id="gate")
        message = await broker.reply_message(run_id)
    assert lost
    assert gate.started == [run_id], "the turn ran once"
    assert message.body == await database.fetchval("select reply from receipts")


async def test_a_lock_held_elsewhere_is_waited_for_and_blocks_no_other_session(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    gate.open.set()
    narrow = settings.model_copy(update={"max_concurrent_turns": 1})
    async with worker_of(narrow, gate.executor):
        await database.execute("select pg_advisory_lock(session_lock_key('held'))")
        held = await broker.ask("held", team_id="gate")
        free = await broker.ask("free", team_id="gate")
        await broker.reply(free)
        assert gate.started == [free]
        await database.execute("select pg_advisory_unlock(session_lock_key('held'))")
        await broker.reply(held)
    assert gate.started == [free, held]


async def test_a_second_worker_waits_for_the_first_and_finds_its_run(settings: Settings, broker: TestBroker) -> None:
    """The broker lost sight of the first worker, the database did not."""
    gate = Gate()
    async with worker_of(settings, gate.executor) as first:
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        async with worker_of(settings, gate.executor) as second:
            for task in first.consuming:
                task.cancel()
            await first.fleet.leave()
            await eventually(lambda: all_consuming(second, settings))
            await eventually(lambda: len(second.mailboxes) == 1)
            gate.open.set()
            reply = await broker.reply(run_id)
    assert gate.started == [run_id]
    assert (reply["attempt"], reply["content"]) == (1, "answer 1")


async def test_a_results_queue_that_was_deleted_is_declared_again(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        await broker.channel.queue_delete(f"{settings.prefix}.results")
        gate.open.set()
        await eventually(lambda: _exists(broker, "results"))
        assert (await broker.reply(run_id))["status"] == "COMPLETED"


async def test_a_request_queue_that_was_deleted_is_declared_and_consumed_again(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()
    gate.open.set()
    async with worker_of(settings, gate.executor) as worker:
        await eventually(lambda: all_consuming(worker, settings))
        await broker.channel.queue_delete(f"{settings.prefix}.requests.0")
        await eventually(lambda: len(worker.consumers.consuming) == settings.partitions)
        await eventually(lambda: all_consuming(worker, settings))
        asked = [await broker.ask(f"s{number}", team_id="gate") for number in range(8)]
        await broker.replies_of(asked)


def _reached(order: list[str], number: int) -> bool:
    return len(order) >= number


def _reconnected(worker: Worker, times: int) -> bool:
    return worker.consumers.connections > times


async def _exists(broker: TestBroker, queue: str) -> bool:
    # On a connection of its own: RabbitMQ closes it where the queue is just being deleted (INTERNAL_ERROR).
    try:
        async with TestBroker(broker.url, broker.prefix) as looking:
            await looking.depth(queue)
    except Exception:  # noqa: BLE001 - whatever the client makes of a missing queue
        return False
    return True


async def test_a_panic_in_an_executor_ends_its_own_turn_only(settings: Settings, broker: TestBroker) -> None:
    class Panic(BaseException):
        """What a Rust extension raises, past every `except Exception`."""

    @executor("panics")
    async def panics(turn: Turn) -> JsonValue:
        if turn.input == "panic":
            raise Panic
        return turn.input

    async with worker_of(settings, panics):
        asked = [await broker.ask("s1", text, team_id="panics") for text in ("panic", "second", "third")]
        replies = [await broker.reply(run_id) for run_id in asked]
    assert [reply["status"] for reply in replies] == ["ERROR", "COMPLETED", "COMPLETED"]
    assert [reply["turn"] for reply in replies] == [1, 2, 3]


async def test_a_worker_that_drains_starts_nothing_more(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    narrow = settings.model_copy(update={"max_concurrent_turns": 1})
    async with worker_of(narrow, gate.executor) as worker:
        asked = [await broker.ask(f"s{number}", team_id="gate") for number in range(4)]
        await eventually(lambda: len(worker.mailboxes) == 4 and len(gate.started) == 1)
        draining = asyncio.create_task(worker.drain())
        await eventually(lambda: not worker.consumers.consuming)
        gate.open.set()
        await draining
        assert len(worker.mailboxes) == 0
    assert len(gate.started) == 1
    assert set(gate.started) <= set(asked)
