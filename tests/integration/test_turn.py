"""One worker in this process, over the real broker and database: what a request becomes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.examples import nested
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings


@executor("echo")
async def echo(turn: Turn) -> JsonValue:
    seen = turn.session_state.get("seen", 0)
    assert isinstance(seen, int)
    turn.session_state["seen"] = seen + 1
    return f"{turn.input} after {[run.input for run in turn.history]}"


async def test_a_request_becomes_a_stored_session_and_a_reply(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, echo):
        run_id = await broker.ask("s1", "hi", user_id="u1", metadata={"channel": "web"}, session_state={"k": [1]})
        reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED"
    assert reply["content"] == "hi after []"
    assert (reply["session_type"], reply["team_id"], reply["user_id"]) == ("team", "echo", "u1")
    assert (reply["turn"], reply["attempt"], reply["error"]) == (1, 1, None)
    row = await database.fetchrow("select * from sessions where session_id = 's1'")
    assert row is not None
    assert list(row.keys()) == [
        *("session_id", "session_type", "agent_id", "team_id", "workflow_id", "user_id", "session_data", "agent_data"),
        *("team_data", "workflow_data", "metadata", "runs", "summary", "created_at", "updated_at"),
    ]
    assert json.loads(row["metadata"]) == {"channel": "web"}
    assert json.loads(row["session_data"])["session_state"] == {"k": [1], "seen": 1}
    (run,) = json.loads(row["runs"])
    assert (run["run_id"], run["status"], run["input"]) == (run_id, "COMPLETED", {"input_content": "hi"})
    assert "agent_id" not in run


async def test_the_next_turn_sees_the_history_and_the_state(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        runs = [await broker.ask("s1", f"q{number}") for number in range(5)]
        last = await broker.reply(runs[-1])
    assert last["content"] == "q4 after ['q1', 'q2', 'q3']"
    assert last["turn"] == 5


async def test_the_same_run_id_five_times_is_one_run_and_five_times_the_same_bytes(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, echo):
        for _ in range(5):
            await broker.ask("s1", "hi", run_id="the-run")
        await broker.consume_results()
        await eventually(lambda: len(broker.replies) == 5)
    assert len({message.body for message in broker.replies}) == 1
    assert {message.message_id for message in broker.replies} == {"the-run"}
    assert await database.fetchval("select count(*) from agno_runs") == 1
    assert await database.fetchval("select turn_seq from agno_sessions") == 1


async def test_sessions_run_side_by_side_and_a_session_one_after_the_other(
    settings: Settings, broker: TestBroker
) -> None:
    running: set[str] = set()
    most = 0
    overlapped = False

    @executor("slow")
    async def slow(turn: Turn) -> JsonValue:
        nonlocal most, overlapped
        overlapped |= turn.session_id in running
        running.add(turn.session_id)
        most = max(most, len(running))
        await asyncio.sleep(0.05)
        running.discard(turn.session_id)
        return None

    async with worker_of(settings, slow):
        asked = [
            await broker.ask(f"s{session}", str(number), team_id="slow") for number in range(4) for session in range(8)
        ]
        await broker.replies_of(asked)
    assert not overlapped
    assert most > 4


async def test_a_request_without_a_slot_is_passed_on_in_order(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        for number in range(10):
            body = {"run_id": f"r{number}", "session_id": "s1", "team_id": "echo", "input": f"q{number}"}
            await broker.publish(body, routing_key="s1", correlation_id=f"c{number}")
        await broker.replies_of([f"r{number}" for number in range(10)])
    turns = {message.message_id: json.loads(message.body)["turn"] for message in broker.replies}
    assert turns == {f"r{number}": number + 1 for number in range(10)}
    assert {message.correlation_id for message in broker.replies} == {f"c{number}" for number in range(10)}


@pytest.mark.parametrize("left", [["x", "y"], [{"role": "tool", "content": nested(300)}] * 2], ids=["texts", "deep"])
async def test_what_can_not_be_stored_of_a_turn_ends_it_once(
    settings: Settings, broker: TestBroker, left: list[Any]
) -> None:
    taken: list[str] = []

    @executor("careless", kind="team")
    async def careless(turn: Turn) -> str:
        taken.append(turn.run_id)
        turn.messages.extend(left)
        return "done"

    async with worker_of(settings, careless):
        run_id = await broker.ask("s1", "hi", team_id="careless")
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "invalid_result")
    assert taken == [run_id]
