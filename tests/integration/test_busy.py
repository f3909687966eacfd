"""Busy sessions: requests that come behind an unfinished one, and don't want to wait."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest

from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.broker import connected
from worker.intake.topology import Topology, apply
from worker.settings import Settings


async def _declared(settings: Settings) -> None:
    """Have the queues before there is a worker."""
    async with connected(settings.amqp_url, name="test") as amqp:
        await apply(amqp.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))


async def _held(broker: TestBroker, gate: Gate, *, user_id: str | None = "u1") -> str:
    """The id of a run of session s1 that is being executed."""
    run_id = await broker.ask("s1", "first", team_id="gate", user_id=user_id)
    await eventually(lambda: run_id in gate.started)
    return run_id


async def test_reject_is_answered_at_once_and_stored(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        first = await _held(broker, gate)
        run_id = await broker.ask("s1", team_id="gate", user_id="u1", on_busy="reject", run_id="r2")
        reply = await broker.reply(run_id)
        gate.open.set()
        await broker.reply(first)
        # The session is free by now: the answer stays what it was.
        await broker.ask("s1", team_id="gate", user_id="u1", on_busy="reject", run_id="r2")
        await eventually(lambda: len(broker.replies) == 3)
        after = await broker.reply(await broker.ask("s1", team_id="gate", user_id="u1", on_busy="reject"))
    assert (reply["status"], reply["turn"]) == ("REJECTED", None)
    assert (reply["error"]["code"], reply["error"]["retryable"]) == ("session_busy", True)
    assert len({message.body for message in broker.replies if message.message_id == run_id}) == 1
    assert gate.started == [first, after["run_id"]]
    assert (after["status"], after["turn"]) == ("COMPLETED", 2)
    assert await database.fetchval("select count(*) from ai.agno_runs where run_id = $1", run_id) == 0


async def test_reject_is_executed_where_nothing_is_before_it(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        reply = await broker.reply(await broker.ask("s1", on_busy="reject"))
    assert reply["status"] == "COMPLETED"


async def test_a_request_behind_a_rejected_one_keeps_its_place(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        first = await _held(broker, gate)
        rejected = await broker.ask("s1", team_id="gate", user_id="u1", on_busy="reject")
        third = await broker.ask("s1", team_id="gate", user_id="u1")
        await broker.reply(rejected)
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in (first, third)]
    assert [reply["turn"] for reply in replies] == [1, 2]
    assert gate.started == [first, third]


async def test_the_same_request_again_is_not_busy_with_itself(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        for _ in range(2):
            await broker.ask("s1", team_id="gate", on_busy="reject", run_id="r1")
        await eventually(lambda: gate.started == ["r1"])
        gate.open.set()
        await broker.consume_results()
        await eventually(lambda: len(broker.replies) == 2)
    assert len({message.body for message in broker.replies}) == 1
    assert json.loads(broker.replies[0].body)["status"] == "COMPLETED"


async def test_a_lock_that_somebody_holds_is_waited_for(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, echo):
        await database.execute("select pg_advisory_lock(session_lock_key('s1'))")
        run_id = await broker.ask("s1", on_busy="reject")
        await broker.consume_results()
        await asyncio.sleep(0.5)
        assert broker.replies == []
        await database.execute("select pg_advisory_unlock(session_lock_key('s1'))")
        reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED"


async def test_interrupt_cancels_what_runs_and_what_waits_and_then_runs(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        first = await _held(broker, gate)
        second = await broker.ask("s1", "second", team_id="gate", user_id="u1")
        third = await broker.ask("s1", "third", team_id="gate", user_id="u1", on_busy="interrupt")
        replies = [await broker.reply(run_id) for run_id in (first, second)]
        await eventually(lambda: gate.started == [first, third])
        gate.open.set()
        last = await broker.reply(third)
    assert [reply["status"] for reply in replies] == ["CANCELLED", "CANCELLED"]
    assert [reply["turn"] for reply in replies] == [1, None]
    assert (last["status"], last["content"], last["turn"]) == ("COMPLETED", "third", 2)
    assert [message.message_id for message in broker.replies] == [first, second, third]
    assert await database.fetchval("select count(*) from ai.cancellations") == 0


@pytest.mark.parametrize("user_id", ["eve", None], ids=["another user", "nobody"])
@pytest.mark.parametrize("on_busy", ["reject", "interrupt"])
async def test_a_stranger_is_told_nothing_and_interrupts_nothing(
    settings: Settings, broker: TestBroker, user_id: str | None, on_busy: str
) -> None:
    gate = Gate()
    gate.open.set()
    async with worker_of(settings, gate.executor):
        await broker.reply(await broker.ask("s1", team_id="gate", user_id="u1"))
        gate.open.clear()
        running = await _held(broker, gate)
        strange = await broker.ask("s1", team_id="gate", user_id=user_id, on_busy=on_busy)
        refused = await broker.reply(strange)
        gate.open.set()
        reply = await broker.reply(running)
    assert (refused["status"], refused["error"]["code"]) == ("REJECTED", "session_forbidden")
    assert reply["status"] == "COMPLETED"


async def test_an_interrupted_session_goes_on_with_what_it_had(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        await broker.ask("s1", team_id="gate", user_id="u1", session_state={"kept": 1})
        await eventually(lambda: len(gate.started) == 1)
        last = await broker.ask("s1", team_id="gate", user_id="u1", on_busy="interrupt")
        await eventually(lambda: len(gate.started) == 2)
        gate.open.set()
        await broker.reply(last)
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    assert data["session_state"] == {"kept": 1}


async def test_a_request_that_is_published_again_interrupts_what_came_before_it_and_nothing_since(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()
    await _declared(settings)
    for run_id, on_busy in (("r1", "enqueue"), ("r2", "interrupt"), ("r3", "enqueue"), ("r2", "interrupt")):
        await broker.ask("s1", team_id="gate", user_id="u1", on_busy=on_busy, run_id=run_id)
    async with worker_of(settings, gate.executor):
        first = await broker.reply("r1")
        await eventually(lambda: "r2" in gate.started)
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in ("r2", "r3")]
    assert first["status"] == "CANCELLED"
    assert [reply["status"] for reply in replies] == ["COMPLETED", "COMPLETED"]


async def test_a_request_that_is_published_again_is_not_refused_while_it_runs(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()
    await _declared(settings)
    for run_id, on_busy in (("r1", "reject"), ("r2", "enqueue"), ("r1", "reject")):
        await broker.ask("s1", team_id="gate", user_id="u1", on_busy=on_busy, run_id=run_id)
    async with worker_of(settings, gate.executor):
        await eventually(lambda: gate.started == ["r1"])
        await broker.consume_results()
        gate.open.set()
        await eventually(lambda: len(broker.replies) == 3)
    assert {json.loads(message.body)["status"] for message in broker.replies} == {"COMPLETED"}
    assert len({message.body for message in broker.replies if message.message_id == "r1"}) == 1
