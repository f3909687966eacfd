"""Agno's own tools on what teamturn wrote: PostgresDb and AsyncPostgresDb, AgentOS, a Team that goes on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from agno.db.base import SessionType
from agno.db.postgres import AsyncPostgresDb, PostgresDb
from agno.os import AgentOS
from agno.run.base import RunStatus
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo

from tests.support.broker import TestBroker
from tests.support.fleet import Gate
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.agno_objects import Scripted, a_team, said
from tests.unit.models import Recorded, member, prompts, responses, tasks, text
from worker.executors.turn import Turn
from worker.settings import Settings
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Workflow

Call = Callable[..., Any]
"""A method of either of Agno's database classes, to be awaited in both."""


@pytest.fixture(params=["PostgresDb", "AsyncPostgresDb"])
async def theirs(postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Agno's own database class, on the test's database; it is told to create nothing."""
    if request.param == "PostgresDb":
        db = PostgresDb(db_url=postgres_url.replace("postgresql://", "postgresql+psycopg://"), create_schema=False)
        yield db
        db.close()
    else:
        own = AsyncPostgresDb(
            db_url=postgres_url.replace("postgresql://", "postgresql+asyncpg://"), create_schema=False
        )
        yield own
        await own.close()


@pytest.fixture
def call(theirs: Any) -> Call:
    async def called(name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(theirs, name)
        if inspect.iscoroutinefunction(method):
            return await method(*args, **kwargs)
        return await asyncio.to_thread(method, *args, **kwargs)

    return called


@pytest.fixture
async def agent_os(theirs: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an AgentOS on the test's database."""
    app = AgentOS(teams=[a_team(id="shop", name="Shop", db=theirs)], db=theirs, telemetry=False).get_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://os") as client:
        yield client


def remember(context: RunContext[Turn], what: str) -> str:
    """Remember."""
    context.deps.session_state["seen"] = [*context.deps.session_state.get("seen", []), what]
    return "remembered"


def _shop() -> Team:
    """A leader that has its one member do what is asked; the member has a tool that changes the state."""

    def serve(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        last = messages[-1].parts[-1]
        if isinstance(last, ToolReturnPart):
            return text("served")
        return ModelResponse(parts=[ToolCallPart("remember", {"what": prompts(messages)[-1]})])

    clerk = Agent(Recorded(serve).model, name="clerk", deps_type=Turn, tools=[remember])
    lead = responses(tasks(("clerk", "tea")), text("here you are"))
    return Team("shop", lead.model, name="Shop", members=[clerk], session_state={"open": True})


async def _asked(broker: TestBroker, *texts: str, session_id: str = "s1", **fields: Any) -> list[str]:
    """The run ids of turns of the shop, answered."""
    run_ids = []
    for one in texts:
        run_ids.append(await broker.ask(session_id, one, team_id="shop", user_id="ada", **fields))
        reply = await broker.reply(run_ids[-1])
        assert reply["status"] == "COMPLETED", reply
    return run_ids


async def test_sessions_are_found_with_their_runs_state_and_metrics(
    settings: Settings, broker: TestBroker, call: Call
) -> None:
    async with worker_of(settings, _shop()):
        run_ids = await _asked(broker, "tea", "milk", metadata={"channel": "web"})
        await _asked(broker, "jam", session_id="s2")
    session = await call("get_session", session_id="s1", session_type=SessionType.TEAM)
    assert (session.team_id, session.user_id, session.metadata) == ("shop", "ada", {"channel": "web"})
    assert session.session_data["session_state"] == {"open": True, "seen": ["tea", "tea"]}
    assert session.session_data["session_metrics"]["total_tokens"] > 0
    assert session.team_data["name"] == "Shop"
    assert [run.run_id for run in session.runs if run.parent_run_id is None] == run_ids
    assert [(run.agent_id, run.parent_run_id, run.content) for run in session.runs if run.parent_run_id] == [
        ("clerk", run_ids[0], "served"),
        ("clerk", run_ids[1], "served"),
    ]
    found = await call("get_sessions", session_type=SessionType.TEAM, user_id="ada", sort_by="created_at")
    assert {one.session_id for one in found} == {"s1", "s2"}
    assert await call("get_sessions", session_type=SessionType.TEAM, user_id="eve") == []
    assert await call("get_sessions", session_type=SessionType.AGENT) == []


async def test_runs_are_found_by_id_and_by_session(settings: Settings, broker: TestBroker, call: Call) -> None:
    async with worker_of(settings, _shop()):
        first, second = await _asked(broker, "tea", "milk")
    run = await call("get_run", first)
    assert (type(run).__name__, run.content, run.input.input_content) == ("TeamRunOutput", "here you are", "tea")
    assert [message.role for message in run.messages][:1] == ["user"]
    runs = await call("get_runs", session_id="s1", team_id="shop")
    assert [one.run_id for one in runs] == [first, second]
    members = await call("get_runs", session_id="s1", agent_id="clerk")
    assert [type(one).__name__ for one in members] == ["RunOutput", "RunOutput"]


async def test_agents_and_workflows_are_of_their_types(settings: Settings, broker: TestBroker, call: Call) -> None:
    solo = SingleAgent(Agent(responses(text("hello")).model, name="solo"))
    flow = Workflow("flow", steps=[member("find", responses(text("found")).model)])
    async with worker_of(settings, solo, flow):
        for number, target in enumerate(({"agent_id": "solo"}, {"workflow_id": "flow"})):
            await broker.publish({"run_id": f"r{number}", "session_id": f"s{number}", "input": "hi"} | target)
            await broker.reply(f"r{number}")
    agent = await call("get_session", session_id="s0", session_type=SessionType.AGENT)
    workflow = await call("get_session", session_id="s1", session_type=SessionType.WORKFLOW)
    assert (type(agent).__name__, agent.agent_id, [run.content for run in agent.runs]) == (
        "AgentSession",
        "solo",
        ["hello"],
    )
    assert (type(workflow).__name__, workflow.workflow_id) == ("WorkflowSession", "flow")
    assert [run.content for run in workflow.runs if run.parent_run_id is None] == ["found"]


async def test_a_session_that_is_renamed_there_keeps_its_name_here(
    settings: Settings, broker: TestBroker, call: Call
) -> None:
    async with worker_of(settings, _shop()):
        await _asked(broker, "tea")
        renamed = await call(
            "rename_session", session_id="s1", session_type=SessionType.TEAM, session_name="Groceries", user_id="ada"
        )
        assert renamed.session_data["session_name"] == "Groceries"
        await _asked(broker, "milk")
    session = await call("get_session", session_id="s1", session_type=SessionType.TEAM)
    assert session.session_data["session_name"] == "Groceries"
    assert session.session_data["session_state"]["seen"] == ["tea", "tea"]


async def test_a_session_that_is_deleted_there_is_gone_with_its_runs(
    settings: Settings, broker: TestBroker, call: Call, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, _shop()):
        await _asked(broker, "tea")
        assert await call("delete_session", session_id="s1", user_id="ada") is True
    assert await database.fetchval("select count(*) from ai.agno_sessions") == 0
    assert await database.fetchval("select count(*) from ai.agno_runs") == 0


async def test_renamed_while_a_turn_runs_it_has_that_name_after_it(
    settings: Settings, broker: TestBroker, call: Call
) -> None:
    gate = Gate()
    gate.open.set()
    async with worker_of(settings, gate.executor):
        await broker.reply(await broker.ask("s1", team_id="gate"))
        gate.open.clear()
        run_id = await broker.ask("s1", team_id="gate", session_state={"n": 1})
        await eventually(lambda: run_id in gate.started)
        await call("rename_session", session_id="s1", session_type=SessionType.TEAM, session_name="Groceries")
        gate.open.set()
        reply = await broker.reply(run_id)
    session = await call("get_session", session_id="s1", session_type=SessionType.TEAM)
    assert (reply["status"], session.session_data["session_name"]) == ("COMPLETED", "Groceries")
    assert session.session_data["session_state"] == {"n": 1}


async def test_deleted_while_a_turn_runs_it_stays_deleted_and_the_turn_says_so(
    settings: Settings, broker: TestBroker, call: Call, database: asyncpg.Connection
) -> None:
    gate = Gate()
    gate.open.set()
    async with worker_of(settings, gate.executor):
        await broker.reply(await broker.ask("s1", team_id="gate"))
        gate.open.clear()
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: run_id in gate.started)
        await call("delete_session", session_id="s1")
        gate.open.set()
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "session_deleted")
    assert await database.fetchval("select count(*) from ai.agno_sessions") == 0


async def test_agent_os_lists_shows_renames_and_deletes(
    settings: Settings, broker: TestBroker, agent_os: httpx.AsyncClient, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, _shop()):
        first, second = await _asked(broker, "tea", "milk")
    of_teams = {"type": "team"}
    listed = (await agent_os.get("/sessions", params=of_teams)).json()
    assert [(one["session_id"], one["session_state"]["open"]) for one in listed["data"]] == [("s1", True)]
    assert listed["meta"]["total_count"] == 1
    session = (await agent_os.get("/sessions/s1", params=of_teams)).json()
    assert (session["session_id"], session["team_id"], session["user_id"]) == ("s1", "shop", "ada")
    assert session["total_tokens"] == await database.fetchval(
        "select (session_data -> 'session_metrics' ->> 'total_tokens')::int from ai.agno_sessions"
    )
    runs = (await agent_os.get("/sessions/s1/runs", params=of_teams)).json()
    assert [(run["run_id"], run["content"]) for run in runs if not run.get("parent_run_id")] == [
        (first, "here you are"),
        (second, "here you are"),
    ]
    one = (await agent_os.get(f"/sessions/s1/runs/{second}", params=of_teams)).json()
    assert (one["run_id"], one["status"], one["run_input"]) == (second, "COMPLETED", "milk")
    renamed = await agent_os.post("/sessions/s1/rename", params=of_teams, json={"session_name": "Groceries"})
    assert (renamed.status_code, renamed.json()["session_name"]) == (200, "Groceries")
    assert (await agent_os.delete("/sessions/s1")).status_code == 204
    assert (await agent_os.get("/sessions", params=of_teams)).json()["data"] == []
    assert await database.fetchval("select count(*) from ai.agno_runs") == 0


async def test_a_team_of_agno_s_continues_the_conversation_with_its_history(
    settings: Settings, broker: TestBroker, postgres_url: str
) -> None:
    async with worker_of(settings, _shop()):
        await _asked(broker, "tea", "milk")
        url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")
        db = AsyncPostgresDb(db_url=url, create_schema=False)
        team = a_team(Scripted("of Agno's"), id="shop", name="Shop", db=db, add_history_to_context=True)
        run = await team.arun("honey", session_id="s1", user_id="ada")
        assert said(team.model.asked[0])[-1] == "user: honey"
        assert [line for line in said(team.model.asked[0]) if line.startswith("user")] == [
            *("user: tea", "user: milk"),
            "user: honey",
        ]
        await db.close()
        # And back here: what Agno answered is part of the conversation.
        await _asked(broker, "jam")
    assert run.content == "of Agno's"


async def test_a_run_that_waits_for_somebody_is_a_paused_one_there(
    settings: Settings, broker: TestBroker, call: Call, agent_os: httpx.AsyncClient
) -> None:
    def pay(amount: int) -> str:
        return f"paid {amount}"

    clerk = Agent(
        Recorded(lambda *_: ModelResponse(parts=[ToolCallPart("pay", {"amount": 5})])).model,
        name="clerk",
        tools=[Tool(pay, requires_approval=True)],
    )
    async with worker_of(
        settings, Team("shop", responses(tasks(("clerk", "tea"))).model, name="Shop", members=[clerk])
    ):
        run_id = await broker.ask("s1", team_id="shop", user_id="ada")
        assert (await broker.reply(run_id))["status"] == "PAUSED"
    session = await call("get_session", session_id="s1", session_type=SessionType.TEAM)
    assert [(type(run).__name__, RunStatus(run.status)) for run in session.runs] == [
        ("RunOutput", RunStatus.paused),
        ("TeamRunOutput", RunStatus.paused),
    ]
    one = (await agent_os.get(f"/sessions/s1/runs/{run_id}", params={"type": "team"})).json()
    assert (one["run_id"], one["status"], one["content"]) == (run_id, "PAUSED", None)
