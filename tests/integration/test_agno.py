"""Agno's teams on a real worker: sessions that go on, side by side, and can be read by Agno itself."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from agno.db.base import SessionType
from agno.db.in_memory import InMemoryDb
from agno.db.postgres import AsyncPostgresDb
from agno.models.message import Message
from agno.os import AgentOS
from agno.run import RunContext
from agno.tools.function import Function
from agno.workflow import Step, StepInput, StepOutput, Workflow

from tests.integration.test_claim_and_commit import commit, request_of, store_of
from tests.support.broker import TestBroker
from tests.support.workers import worker_of
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in, said, told
from worker.agno.executor import AgnoExecutor
from worker.settings import Settings


@pytest.fixture
async def theirs(postgres_url: str) -> AsyncIterator[AsyncPostgresDb]:
    """Agno's own database class, on the test's database."""
    db = AsyncPostgresDb(db_url=postgres_url.replace("postgresql://", "postgresql+asyncpg://"), create_schema=False)
    yield db
    await db.close()


def _counting(run_context: RunContext, what: str) -> str:
    """Count."""
    state = run_context.session_state
    assert state is not None
    state["seen"] = [*state.get("seen", []), what]
    return f"number {len(state['seen'])}"


def _newest(messages: list[Message]) -> str:
    return [str(message.content) for message in messages if message.role == "user"][-1]


def _shop() -> Any:
    """A leader that has its one member do what is asked; the member has a tool that counts."""
    lead = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("clerk", _newest(messages))))
    clerk = Scripted(lambda messages: " ".join(results_in(messages)) or calls(("count", {"what": _newest(messages)})))
    member = an_agent(clerk, id="clerk", name="clerk", tools=[Function(name="count", entrypoint=_counting)])
    return a_team(lead, member, id="shop", name="Shop", add_history_to_context=True, num_history_runs=2)


async def test_a_session_goes_on_over_turns_with_its_history_and_its_state(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    team = _shop()
    async with worker_of(settings, AgnoExecutor(team)):
        replies = [
            await broker.reply(await broker.ask("s1", f"q{number}", team_id="shop", user_id="u1"))
            for number in range(4)
        ]
    assert [reply["content"] for reply in replies] == ["number 1", "number 2", "number 3", "number 4"]
    assert [reply["turn"] for reply in replies] == [1, 2, 3, 4]
    last = replies[-1]
    assert [(one["member_id"], one["content"]) for one in last["member_responses"]] == [("clerk", "number 4")]
    assert (last["metrics"]["model_requests"], last["metrics"]["tool_calls"]) == (4, 2)
    # The last two runs with their tool calls, and not the one before.
    asked = team.model.asked[-2]
    assert [message.role for message in asked] == ["system", *["user", "assistant", "tool", "assistant"] * 2, "user"]
    assert [line for line in said(asked) if line.startswith("user")] == ["user: q1", "user: q2", "user: q3"]
    row = await database.fetchrow("select * from ai.sessions where session_id = 's1'")
    assert row is not None
    data, runs = json.loads(row["session_data"]), json.loads(row["runs"])
    assert data["session_state"] == {"seen": ["q0", "q1", "q2", "q3"]}
    assert data["session_metrics"]["total_tokens"] == 4 * 4 * 12
    assert [(run.get("agent_id"), run.get("team_id")) for run in runs] == [("clerk", None), (None, "shop")] * 4
    assert runs[-2]["parent_run_id"] == runs[-1]["run_id"]


async def test_fifty_sessions_at_once_on_one_team_are_each_their_own(settings: Settings, broker: TestBroker) -> None:
    together = asyncio.Barrier(50)

    async def wait(run_context: RunContext) -> str:
        """Wait until all are here."""
        async with asyncio.timeout(30):
            await together.wait()
        state = run_context.session_state
        assert state is not None
        state["turns"] = state.get("turns", 0) + 1
        assert run_context.metadata is not None
        return f"{run_context.user_id} {run_context.metadata['of']} {json.dumps(state, sort_keys=True)}"

    def answer(messages: list[Message]) -> Any:
        before = [line for line in said(messages) if line.startswith("user")]
        return f"{before} {results_in(messages)}" if results_in(messages) else calls(("wait", {}))

    team = a_team(
        Scripted(answer), id="all", tools=[Function(name="wait", entrypoint=wait)], add_history_to_context=True
    )
    names = [f"n{number:02}" for number in range(50)]
    async with worker_of(settings, AgnoExecutor(team)):
        for turn in (1, 2):
            runs = {
                name: await broker.ask(
                    f"s-{name}",
                    f"{name} asks {turn}",
                    team_id="all",
                    user_id=f"u-{name}",
                    metadata={"of": name},
                    session_state={"whose": name},
                )
                for name in names
            }
            for name, run_id in runs.items():
                reply = await broker.reply(run_id, seconds=60)
                asked = [f"user: {name} asks {number}" for number in range(1, turn + 1)]
                of_run = {"current_user_id": f"u-{name}", "current_session_id": f"s-{name}", "current_run_id": run_id}
                state = json.dumps({"whose": name, "turns": turn} | of_run, sort_keys=True)
                assert reply["content"] == f"{asked} {[f'u-{name} {name} {state}']}", reply


async def test_what_is_stored_is_what_agno_reads(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb
) -> None:
    async with worker_of(settings, AgnoExecutor(_shop())):
        run_id = await broker.ask("s1", "tea", team_id="shop", user_id="u1", metadata={"channel": "web"})
        await broker.reply(run_id)
    session: Any = await theirs.get_session(session_id="s1", session_type=SessionType.TEAM)
    assert (session.team_id, session.user_id, session.metadata) == ("shop", "u1", {"channel": "web"})
    member, run = session.runs
    assert (run.run_id, run.content, run.input.input_content) == (run_id, "number 1", "tea")
    assert [tool.tool_name for tool in run.tools] == ["delegate_task_to_member"]
    assert [message.role for message in run.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert (member.agent_id, member.parent_run_id, member.content) == ("clerk", run_id, "number 1")
    assert run.metrics.input_tokens == 20 + 20


async def test_agent_os_shows_what_is_stored(settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb) -> None:
    async with worker_of(settings, AgnoExecutor(_shop())):
        run_id = await broker.ask("s1", "tea", team_id="shop", user_id="u1")
        await broker.reply(run_id)
    shown = a_team(id="shop", name="Shop", db=theirs)
    app = AgentOS(teams=[shown], db=theirs, telemetry=False).get_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://os") as client:
        sessions = (await client.get("/sessions", params={"type": "team"})).json()["data"]
        session = await client.get("/sessions/s1", params={"type": "team"})
        runs = (await client.get("/sessions/s1/runs", params={"type": "team"})).json()
    assert [(one["session_id"], one["session_state"]) for one in sessions] == [("s1", {"seen": ["tea"]})]
    assert session.status_code == 200
    assert [(run["run_id"], run["content"]) for run in runs][-1] == (run_id, "number 1")
    assert [tool["tool_name"] for tool in runs[-1]["tools"]] == ["delegate_task_to_member"]


async def test_agno_and_teamturn_go_on_with_each_other_s_sessions(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb
) -> None:
    team = a_team(Scripted(lambda messages: f"re {_newest(messages)}"), id="t1", name="T", add_history_to_context=True)
    executor = AgnoExecutor(team)
    theirs_team = a_team(team.model, id="t1", name="T", add_history_to_context=True, db=theirs, session_state={"n": 1})
    await theirs_team.arun("first", session_id="s1", user_id="u1", run_id=str(uuid.uuid4()))
    async with worker_of(settings, executor):
        reply = await broker.reply(await broker.ask("s1", "second", team_id="t1", user_id="u1"))
    assert (reply["content"], reply["turn"]) == ("re second", 1)
    await theirs_team.arun("third", session_id="s1", user_id="u1", run_id=str(uuid.uuid4()))
    assert said(team.model.asked[-1]) == [
        *("user: first", "assistant: re first", "user: second", "assistant: re second"),
        "user: third",
    ]
    session: Any = await theirs.get_session(session_id="s1", session_type=SessionType.TEAM)
    assert session.session_data["session_state"] == {"n": 1}


async def test_the_summary_that_agno_s_manager_writes_is_stored_and_shown(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    def answer(messages: list[Message]) -> Any:
        summed_up = "<conversation>" in told(messages)
        return '{"summary": "tea was asked for", "topics": ["tea"]}' if summed_up else "fine"

    model = Scripted(answer)
    team = a_team(model, id="t1", enable_session_summaries=True)
    async with worker_of(settings, AgnoExecutor(team)):
        await broker.reply(await broker.ask("s1", "tea please", team_id="t1"))
        async with asyncio.timeout(20):
            while await database.fetchval("select summary from ai.agno_sessions") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await broker.reply(await broker.ask("s1", "again", team_id="t1"))
    asked = next(messages for messages in model.asked if said(messages)[-1] == "user: again")
    assert "tea was asked for" in told(asked)
    assert said(asked) == ["user: again"]
    session: Any = await theirs.get_session(session_id="s1", session_type=SessionType.TEAM)
    assert (session.summary.summary, session.summary.topics) == ("tea was asked for", ["tea"])


async def test_memories_go_to_the_database_of_its_own_and_no_session_does(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    def answer(messages: list[Message]) -> Any:
        if "Memory Manager" in told(messages):
            remembered = ("add_memory", {"memory": "likes tea", "topics": ["tea"]})
            return "done" if results_in(messages) else calls(remembered)
        return f"you know {told(messages)}"

    own = InMemoryDb()
    team = a_team(Scripted(answer), id="t1", db=theirs, update_memory_on_run=True)
    other = a_team(Scripted(answer), id="t2", db=own, update_memory_on_run=True)
    async with worker_of(settings, AgnoExecutor(team), AgnoExecutor(other)):
        for team_id in ("t1", "t2"):
            asked = [await broker.ask(f"s-{team_id}-{n}", "hi", team_id=team_id, user_id="u1") for n in (1, 2)]
            replies = [await broker.reply(run_id) for run_id in asked]
            assert [reply["status"] for reply in replies] == ["COMPLETED", "COMPLETED"]
        last = await broker.reply(await broker.ask("s-t1-1", "hi", team_id="t1", user_id="u1"))
    assert "likes tea" in last["content"]
    memories: Any = await theirs.get_user_memories(user_id="u1")
    assert {memory.memory for memory in memories} == {"likes tea"}
    assert {memory.memory for memory in own.get_user_memories(user_id="u1")} == {"likes tea"}
    assert (own.get_sessions(), own.get_runs()) == ([], [])
    assert await database.fetchval("select count(*) from ai.agno_sessions where turn_seq = 0") == 0
    assert await database.fetchval("select count(*) from ai.agno_runs") == 5


async def test_a_workflow_s_session_goes_on_too(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb
) -> None:
    def shout(step_input: StepInput, run_context: RunContext) -> StepOutput:
        assert run_context.session_state is not None
        run_context.session_state["shouts"] = run_context.session_state.get("shouts", 0) + 1
        return StepOutput(content=f"{step_input.previous_step_content}!".upper())

    model = Scripted("tea")
    steps = [Step(name="find", agent=an_agent(model, id="finder", name="finder")), Step(name="shout", executor=shout)]
    workflow = Workflow(id="w1", name="W", steps=steps, add_workflow_history_to_steps=True, telemetry=False)
    async with worker_of(settings, AgnoExecutor(workflow)):
        for number in (1, 2):
            asked = {"run_id": f"r{number}", "session_id": "s1", "workflow_id": "w1", "input": f"q{number}"}
            await broker.publish(asked)
            await broker.reply(f"r{number}")
        reply = await broker.reply("r2")
    assert (reply["content"], reply["session_type"]) == ("TEA!", "workflow")
    assert [(one["member_id"], one["content"]) for one in reply["member_responses"]] == [
        ("find", "tea"),
        ("shout", "TEA!"),
    ]
    assert "Workflow output: TEA!" in said(model.asked[-1])[0]
    session: Any = await theirs.get_session(session_id="s1", session_type=SessionType.WORKFLOW)
    assert session.session_data["session_state"]["shouts"] == 2
    assert [run.run_id for run in session.runs] == ["r1", "r2"]
    assert [run.agent_id for run in session.runs[-1].step_executor_runs] == ["finder"]


async def test_whole_runs_are_read_in_order_each_after_those_below_it(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        for number in range(3):
            async with store.claimed(request_of(f"r{number}"), 0) as claimed:
                await commit(claimed, content=f"answer {number}")
        await database.execute(
            """
            update ai.agno_runs set run_index = run_index * 10;
            insert into ai.agno_runs
                (run_id, session_id, run_type, parent_run_id, status, run_index, run_data, created_at)
            select run_id, 's1', 'agent', parent, 'COMPLETED', index, jsonb_build_object('run_id', run_id), 1
            from (values ('m0', 'r0', 0), ('m1', 'r1', 8), ('m1a', 'm1', 7), ('m2', 'r2', 18), ('x', 'gone', 9))
                as member (run_id, parent, index);
            """
        )
        async with store.claimed(request_of("r9"), 2) as claimed:
            ids = [run.run_id for run in claimed.claim.history]
            assert [run["run_id"] for run in await claimed.whole_runs(ids)] == ["m1a", "m1", "r1", "m2", "r2"]
            assert await claimed.whole_runs([]) == ()


async def test_of_runs_that_are_too_long_to_be_read_whole_the_last_are(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        for number in range(3):
            async with store.claimed(request_of(f"r{number}"), 0) as claimed:
                await commit(claimed)
        await database.execute(
            "update ai.agno_runs set run_data = run_data || jsonb_build_object('long', repeat('x', 9 * 1024 * 1024))"
        )
        async with store.claimed(request_of("r9"), 3) as claimed:
            found = await claimed.whole_runs([run.run_id for run in claimed.claim.history])
    assert [run["run_id"] for run in found] == ["r2"]
