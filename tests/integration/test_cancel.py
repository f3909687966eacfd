"""Cancelling: a running run, one that waits, one that is still to come; and who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo

from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.models import Recorded, tasks, text
from worker.broker import connected
from worker.client import RunClient
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.intake.topology import Topology, apply
from worker.settings import Settings
from worker.team.team import Team


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[RunClient]:
    async with connected(settings.amqp_url, name="test") as amqp:
        await apply(amqp.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))
    async with RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client:
        yield client


async def _said(database: asyncpg.Connection, run_id: str) -> None:
    """Wait until it is stored that a run is cancelled."""

    async def stored() -> bool:
        return bool(await database.fetchval("select count(*) from ai.cancellations where run_id = $1", run_id))

    await eventually(stored)


async def _run(database: asyncpg.Connection, run_id: str) -> dict[str, Any] | None:
    found = await database.fetchval("select run_data from ai.agno_runs where run_id = $1", run_id)
    return None if found is None else dict(json.loads(found))


async def test_a_running_run_stops_at_its_next_await_and_is_stored_with_what_it_had(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    gate = Gate()

    @executor("busy")
    async def busy(turn: Turn) -> str:
        turn.session_state["begun"] = True
        gate.started.append(turn.run_id)
        await asyncio.Event().wait()
        return "never"

    async with worker_of(settings, busy, echo):
        run_id = await broker.ask("s1", team_id="busy", user_id="u1")
        await eventually(lambda: gate.started == [run_id])
        await client.cancel(run_id, session_id="s1", user_id="u1")
        reply = await broker.reply(run_id)
        again = await broker.reply(await broker.ask("s2"))
    assert (reply["status"], reply["content"], reply["turn"]) == ("CANCELLED", None, 1)
    assert reply["error"]["code"] == "cancelled"
    stored = await _run(database, run_id)
    assert stored is not None
    assert stored["status"] == "CANCELLED"
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions where session_id = 's1'"))
    assert data["session_state"] == {"begun": True}
    assert again["status"] == "COMPLETED"
    assert await database.fetchval("select count(*) from ai.cancellations") == 0


async def test_a_team_s_members_stop_and_their_runs_say_so(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    reached = asyncio.Event()
    stopped: list[str] = []

    async def look_up(context: RunContext[Turn]) -> str:
        context.deps.session_state["looked"] = True
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("tool")
        return "never"

    def ask_tool(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("look_up", {})])

    clerk = Agent(Recorded(ask_tool).model, name="clerk", deps_type=Turn, tools=[look_up])
    team = Team("shop", Recorded(lambda *_: tasks(("clerk", "serve"))).model, members=[clerk])
    async with worker_of(settings, team):
        run_id = await broker.ask("s1", team_id="shop")
        await reached.wait()
        await client.cancel(run_id, session_id="s1")
        reply = await broker.reply(run_id)
    assert stopped == ["tool"]
    assert reply["status"] == "CANCELLED"
    assert [(one["member_id"], one["status"]) for one in reply["member_responses"]] == [("clerk", "CANCELLED")]
    # What the models were paid for is counted.
    assert reply["metrics"]["model_requests"] == 2
    member = await database.fetchval("select status from ai.agno_runs where parent_run_id = $1", run_id)
    assert member == "CANCELLED"


async def test_a_waiting_run_is_answered_in_its_place_and_never_started(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        first, second, third = [await broker.ask("s1", f"q{number}", team_id="gate") for number in range(3)]
        await eventually(lambda: gate.started == [first])
        await client.cancel(second, session_id="s1")
        await _said(database, second)
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in (first, second, third)]
    assert [reply["status"] for reply in replies] == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert [reply["turn"] for reply in replies] == [1, None, 2]
    assert gate.started == [first, third]
    order = [message.message_id for message in broker.replies]
    assert order == [first, second, third]
    assert await _run(database, second) is None


async def test_a_run_can_be_cancelled_before_it_is_asked_for_with_no_worker_running(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    await client.cancel("future", session_id="s1", user_id="u1")
    gate = Gate()
    gate.open.set()
    async with worker_of(settings, gate.executor):
        await _said(database, "future")
        await broker.ask("s1", team_id="gate", user_id="u1", run_id="future")
        reply = await broker.reply("future")
        await broker.ask("s1", team_id="gate", user_id="u1", run_id="future")
        await eventually(lambda: len(broker.replies) == 2)
    assert (reply["status"], reply["error"]["code"]) == ("CANCELLED", "cancelled")
    assert len({message.body for message in broker.replies}) == 1
    assert gate.started == []


async def test_a_finished_run_is_left_alone(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, echo):
        run_id = await broker.ask("s1")
        first = await broker.reply(run_id)
        await client.cancel(run_id, session_id="s1")
        # Another one, that comes after it, is stored.
        await client.cancel("other", session_id="s1")
        await _said(database, "other")
        await broker.ask("s1", run_id=run_id)
        await eventually(lambda: len(broker.replies) == 2)
    assert [json.loads(message.body) for message in broker.replies] == [first, first]
    assert await database.fetchval("select count(*) from ai.cancellations where run_id = $1", run_id) == 0


@pytest.mark.parametrize(
    "said",
    [
        {"session_id": "s1", "user_id": "eve"},
        {"session_id": "s1", "user_id": None},
        {"session_id": "other", "user_id": "u1"},
        {"session_id": None, "user_id": "u1"},
    ],
    ids=["another user", "no user", "another session", "no session"],
)
async def test_who_does_not_name_its_session_and_user_changes_nothing(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection, said: dict[str, Any]
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        run_id = await broker.ask("s1", "hello", team_id="gate", user_id="u1")
        waiting = await broker.ask("s1", "hello", team_id="gate", user_id="u1")
        await eventually(lambda: gate.started == [run_id])
        for one in (run_id, waiting):
            await client.cancel(one, **said)
            await _said(database, one)
        gate.open.set()
        replies = [await broker.reply(one) for one in (run_id, waiting)]
    assert [reply["status"] for reply in replies] == ["COMPLETED", "COMPLETED"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_request"),
        (b'{"type": "cancel"}', "invalid_request"),
        (b'{"run_id": "r1", "session_id": "s1"}', "invalid_request"),
        (b'{"type": "cancel", "run_id": "r1", "why": "x"}', "invalid_request"),
        (b'{"type": "resume", "run_id": "r1"}', "invalid_request"),
        (b'{"type": "cancel", "run_id": "' + b"x" * 9_000 + b'"}', "request_too_large"),
    ],
    ids=["no JSON", "no run", "no type", "an unknown field", "another type", "too large"],
)
async def test_what_can_t_be_read_goes_to_the_dead_letters_and_stops_nobody(  # noqa: PLR0917 - fixtures
    settings: Settings,
    broker: TestBroker,
    client: RunClient,
    database: asyncpg.Connection,
    body: bytes,
    code: str,
) -> None:
    async with worker_of(settings, echo):
        await broker.publish(body, exchange=f"{settings.prefix}.control", routing_key="")
        dead = await broker.dead_letter()
        await client.cancel("next", session_id="s1")
        await _said(database, "next")
    assert dead.headers["x-teamturn-code"] == code


async def test_a_run_that_waits_for_another_worker_s_turn_is_cancelled_too(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    """The session's lock is held elsewhere; when it is free, the run is answered and not started."""
    async with worker_of(settings, echo):
        await database.execute("select pg_advisory_lock(session_lock_key('s1'))")
        run_id = await broker.ask("s1")
        await client.cancel(run_id, session_id="s1")
        await _said(database, run_id)
        await database.execute("select pg_advisory_unlock(session_lock_key('s1'))")
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["turn"]) == ("CANCELLED", None)


async def test_two_workers_and_the_cancel_reaches_the_one_that_is_at_the_run(
    settings: Settings, broker: TestBroker, client: RunClient
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), worker_of(settings, gate.executor):
        runs = [await broker.ask(f"s{number}", team_id="gate") for number in range(6)]
        await eventually(lambda: len(gate.started) == 6)
        for number, run_id in enumerate(runs):
            await client.cancel(run_id, session_id=f"s{number}")
        replies = [await broker.reply(run_id) for run_id in runs]
    assert {reply["status"] for reply in replies} == {"CANCELLED"}


async def test_a_team_s_answer_after_a_cancelled_turn_does_not_show_it(
    settings: Settings, broker: TestBroker, client: RunClient
) -> None:
    reached = asyncio.Event()
    waits = True

    async def think(_: RunContext[Turn]) -> str:
        reached.set()
        if waits:
            await asyncio.Event().wait()
        return "thought"

    leader = Recorded(lambda *_: ModelResponse(parts=[ToolCallPart("think", {})]) if waits else text("done"))
    team = Team("t1", leader.model, tools=[think])
    async with worker_of(settings, team):
        run_id = await broker.ask("s1", "first", team_id="t1")
        await reached.wait()
        await client.cancel(run_id, session_id="s1")
        await broker.reply(run_id)
        waits = False
        reply = await broker.reply(await broker.ask("s1", "second", team_id="t1"))
    assert (reply["content"], reply["turn"]) == ("done", 2)
    assert "first" not in str(leader.asked[-1])
