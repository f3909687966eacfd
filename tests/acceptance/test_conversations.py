"""Conversations with workers that are processes, and are killed: cancel, interrupt, coalesce, pause, watch."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aio_pika.abc import AbstractIncomingMessage

from schemas.events import RUN_EVENT, RunEvent
from tests.acceptance.stage import DATA, QUICKER, Gates, json_of, stored_runs, worker_on
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, environment_of, run_command
from worker.broker import connected
from worker.intake.topology import Topology, apply
from worker.settings import Settings

TEAMS = "conversation_teams:everything"


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


def a_worker(settings: Settings, gates: Gates) -> WorkerProcess:
    return worker_on(settings, gates, teams=TEAMS, cwd=DATA)


async def _cancel(broker: TestBroker, run_id: str, session_id: str = "s1") -> None:
    said = {"type": "cancel", "run_id": run_id, "session_id": session_id}
    await broker.publish(said, exchange=f"{broker.prefix}.control", routing_key="")


async def _delivered(broker: TestBroker, settings: Settings, session_id: str = "s1") -> None:
    """Wait until no request of the session's partition waits in the queue."""
    partition = int(hashlib.md5(session_id.encode()).hexdigest()[:2], 16) % settings.partitions

    async def is_empty() -> bool:
        return await broker.depth(f"requests.{partition}") == 0

    await eventually(is_empty)


async def test_a_cancel_reaches_the_turn_on_whichever_worker_it_runs(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    """One of the two takes the control message; the other, for one of the runs, is told."""
    async with a_worker(settings, gates) as one, a_worker(settings, gates) as two:
        await asyncio.gather(one.logged("worker_consuming"), two.logged("worker_consuming"))
        # Of every partition one.
        sessions = [f"s{number}" for number in range(2 * settings.partitions)]
        run_ids = {session: await broker.ask(session, "gate", team_id="steps") for session in sessions}
        await gates.reached("gate", times=len(sessions))
        for session, run_id in run_ids.items():
            await _cancel(broker, run_id, session)
        replies = [await broker.reply(run_id) for run_id in run_ids.values()]
    assert [(reply["status"], reply["turn"]) for reply in replies] == [("CANCELLED", 1)] * len(sessions)
    assert await database.fetchval("select count(*) from ai.cancellations") == 0


async def test_a_cancel_is_kept_while_no_worker_runs_and_holds_for_requests_before_and_after_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with connected(settings.amqp_url, name="test") as amqp:
        await apply(amqp.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))
    await broker.ask("s1", "look", team_id="steps", run_id="before")
    await _cancel(broker, "before")
    await _cancel(broker, "after")
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        reply = await broker.reply("before")
        await eventually(lambda: _is_said(database, "after"))
        late = await broker.reply(await broker.ask("s1", "look", team_id="steps", run_id="after"))
    assert [one["status"] for one in (reply, late)] == ["CANCELLED"] * 2
    assert gates.visits("look") == 0
    assert await stored_runs(database, "s1") == []


async def _is_said(database: asyncpg.Connection, run_id: str) -> bool:
    return bool(await database.fetchval("select count(*) from ai.cancellations where run_id = $1", run_id))


async def test_a_request_that_interrupts_a_run_whose_worker_dies_runs_after_it_is_cancelled(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        await broker.ask("s1", "pay gate?", team_id="steps", run_id="first")
        await gates.reached("gate")
        worker.kill()
        await worker.exited()
    await broker.ask("s1", "look", team_id="steps", run_id="second", on_busy="interrupt")
    async with a_worker(settings, gates):
        replies = [await broker.reply(run_id) for run_id in ("first", "second")]
    assert [reply["status"] for reply in replies] == ["CANCELLED", "COMPLETED"]
    assert [run["status"] for run in await stored_runs(database, "s1")] == ["CANCELLED", "COMPLETED"]
    assert gates.visits("pay") == 1


async def test_a_coalesced_turn_whose_worker_is_killed_goes_on_for_the_same_requests(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    asked: dict[str, Any] = {"team_id": "steps", "on_busy": "coalesce"}
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        await broker.ask("s1", "busy-gate?", run_id="busy", **asked)
        await gates.reached("busy-gate")
        await broker.ask("s1", "pay", run_id="r1", **asked)
        await broker.ask("s1", "gate? last", run_id="r2", **asked)
        await _delivered(broker, settings)
        gates.open("busy-gate")
        await gates.reached("gate")
        worker.kill()
        await worker.exited()
    await broker.ask("s1", "late", run_id="r3", **asked)
    gates.open("gate")
    async with a_worker(settings, gates):
        replies = [await broker.reply(run_id) for run_id in ("r1", "r2", "r3")]
    assert [reply["content"] for reply in replies] == [["pay", "gate", "last"]] * 2 + [["late"]]
    assert [reply.get("answered_by") for reply in replies] == [None, "r1", None]
    assert [gates.visits(name) for name in ("pay", "gate", "last")] == [1, 2, 1]
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == ["busy", "r1", "r3"]


async def test_an_approved_call_is_made_once_though_the_worker_that_made_it_is_killed(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    asked = {"session_id": "s1", "team_id": "shop"}
    decided = {"continues": "r1", "decisions": [{"tool_call_id": "pay-1", "approved": True}]}
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        await broker.publish(asked | {"run_id": "r1", "input": "sell"})
        paused = await broker.reply("r1")
        worker.kill()
        await worker.exited()
    assert (paused["status"], [one["tool"] for one in paused["approvals"]]) == ("PAUSED", ["pay"])
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        await broker.publish(asked | {"run_id": "r2"} | decided)
        await gates.reached("answer-gate")
        worker.kill()
        await worker.exited()
    gates.open("answer-gate")
    async with a_worker(settings, gates):
        reply = await broker.reply("r2")
    assert (reply["status"], reply["content"], reply["attempt"]) == ("COMPLETED", "done: pay 3", 2)
    assert [gates.visits(name) for name in ("question", "pay", "answer-gate")] == [1, 1, 2]
    data = await database.fetchval("select session_data from ai.sessions where session_id = 's1'")
    assert json_of(data)["session_state"] == {"paid": 3}
    assert await database.fetchval("select count(*) from ai.turn_steps") == 0


async def test_a_watched_run_whose_worker_is_killed_tells_on_behind_its_last_step(
    settings: Settings, broker: TestBroker, gates: Gates
) -> None:
    told: list[RunEvent] = []

    async def received(message: AbstractIncomingMessage) -> None:
        told.append(RUN_EVENT.validate_json(message.body))

    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        queue = await broker.channel.declare_queue(exclusive=True)
        await queue.bind(f"{broker.prefix}.events", "team.teller.#")
        await queue.consume(received, no_ack=True)
        await broker.ask("s1", "tell", team_id="teller", run_id="r1", stream=True)
        await gates.reached("story-gate")
        await eventually(lambda: any(event.type == "content_delta" for event in told))
        worker.kill()
        await worker.exited()
    gates.open("story-gate")
    async with a_worker(settings, gates):
        await eventually(lambda: told[-1].type == "run_finished")
    first, second = ([event for event in told if event.attempt == attempt] for attempt in (1, 2))
    assert len(first) + len(second) == len(told)
    for one in (first, second):
        assert [event.number for event in one] == list(range(1, len(one) + 1))
    begun, end = second[0], second[-1]
    assert begun.type == "run_started"
    assert begun.resumed_behind == "tool:look@look-1#1"
    assert [event.text for event in second if event.type == "content_delta"] == ["Once ", "upon a time."]
    assert end.type == "run_finished"
    assert (end.reply.content, end.reply.attempt) == ("Once upon a time.", 2)
    assert gates.visits("look") == 1


async def test_ask_says_what_a_paused_run_waits_for_and_goes_on_with_what_is_decided(
    settings: Settings, gates: Gates, tmp_path: Path
) -> None:
    environment = environment_of(settings, XDG_STATE_HOME=str(tmp_path / "state"), **QUICKER)
    gates.open("answer-gate")
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        nothing = await run_command("ask", "--team", "shop", environment=environment)
        nobody = await run_command("ask", "--approve", "pay-1", "--team", "shop", environment=environment)
        asked = await run_command("ask", "sell", "--team", "shop", environment=environment)
        code, out, err = await run_command("ask", "--continue", "--approve", "pay-1", environment=environment)
        again = await run_command("ask", "--continue", "--approve", "pay-1", environment=environment)
    assert (asked[0], asked[1].strip()) == (1, "")
    assert 'cashier asks to call pay({"amount":3}). --approve or --deny pay-1' in asked[2]
    assert (code, out) == (0, "done: pay 3\n"), err
    assert gates.visits("pay") == 1
    for mistake, words in ((nothing, "say what to ask"), (nobody, "--session"), (again, "has not paused")):
        assert (mistake[0], mistake[1]) == (2, "")
        assert words in mistake[2]
        assert len(mistake[2].splitlines()) == 1
