"""Sessions that Agno 2 wrote, whose runs are a column of the session row: they go on here, and Agno 3 reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from agno.db.base import SessionType
from agno.db.migrations.manager import MigrationManager
from agno.db.postgres import AsyncPostgresDb
from pydantic import SecretStr

from tests.acceptance.stage import database_of_its_own
from tests.support.broker import TestBroker
from tests.support.workers import worker_of
from tests.unit.agno_objects import Scripted, a_team, said
from tests.unit.models import Recorded, prompts, text
from worker.agno.executor import AgnoExecutor
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.sessions.migrations import migrate
from worker.sessions.reader import list_sessions
from worker.settings import Settings
from worker.team.team import Team

WRITTEN = Path(__file__).parent.parent / "data" / "agno_2.sql"
"""By Agno 2.9.0: a team's session of three turns and a failed one, with a member's runs; and an agent's. What Agno told
the models is left out."""
RUNS_OF_SHOP = 7


@pytest.fixture
async def postgres_url(sandbox: Sandbox) -> AsyncIterator[str]:
    """A database that Agno 2 wrote, migrated for teamturn."""
    async with database_of_its_own(sandbox, None) as url:
        admin = await asyncpg.connect(url)
        await admin.execute(WRITTEN.read_text())
        await admin.close()
        connection = await connect(SecretStr(url), "ai", application="test")
        await migrate(connection, "ai")
        await connection.close()
        yield url


@pytest.fixture
async def theirs(postgres_url: str) -> AsyncIterator[AsyncPostgresDb]:
    db = AsyncPostgresDb(db_url=postgres_url.replace("postgresql://", "postgresql+asyncpg://"), create_schema=False)
    yield db
    await db.close()


async def _ask(broker: TestBroker, run_id: str, text: str, **fields: Any) -> dict[str, Any]:
    asked = {"run_id": run_id, "session_id": "shop-1", "team_id": "shop", "user_id": "ada", "input": text}
    await broker.publish(asked | fields)
    return await broker.reply(run_id)


async def _row(database: asyncpg.Connection) -> dict[str, Any]:
    row = await database.fetchrow("select * from ai.agno_sessions where session_id = 'shop-1'")
    assert row is not None
    return dict(row)


async def test_a_team_of_ours_goes_on_with_its_history_state_name_and_metrics(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    before = await _row(database)
    leader = Recorded(lambda *_: text("again"))
    async with worker_of(settings, Team("shop", leader.model, history_runs=2)):
        first = await _ask(broker, "r1", "honey")
        second = await _ask(broker, "r2", "jam")
    assert [(reply["status"], reply["turn"]) for reply in (first, second)] == [("COMPLETED", 1), ("COMPLETED", 2)]
    assert [prompts(asked) for asked in leader.asked] == [["milk", "sugar", "honey"], ["sugar", "honey", "jam"]]
    after = await _row(database)
    data = json.loads(after["session_data"])
    assert (data["session_name"], data["session_state"]) == (
        "Groceries",
        {"seen": ["tea", "milk", "sugar"], "opened": True},
    )
    old = json.loads(before["session_data"])["session_metrics"]
    assert data["session_metrics"]["input_tokens"] == old["input_tokens"] + sum(
        reply["metrics"]["input_tokens"] for reply in (first, second)
    )
    assert data["session_metrics"]["details"] == old["details"]
    untouched = {"runs", "session_type", "team_id", "user_id", "metadata", "summary", "created_at"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}


async def test_turns_are_appended_as_rows_behind_what_is_there(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, Team("shop", Recorded(lambda *_: text("again")).model)):
        await _ask(broker, "r1", "honey")
    rows = await database.fetch("select run_id, run_index from ai.agno_runs")
    assert [tuple(row) for row in rows] == [("r1", RUNS_OF_SHOP)]
    runs = json.loads(await database.fetchval("select runs from ai.sessions where session_id = 'shop-1'"))
    assert [run["run_id"] for run in runs if "parent_run_id" not in run] == [
        *("agno2-0", "agno2-1", "agno2-2", "agno2-failed"),
        "r1",
    ]
    listed = {one.session_id: one.runs for one in await list_sessions(database, limit=10)}
    assert listed == {"shop-1": 5, "solo-1": 1}


async def test_a_turn_with_all_of_its_history_has_that_of_before(settings: Settings, broker: TestBroker) -> None:
    @executor("shop", history_runs=None)
    async def shop(turn: Turn) -> Any:
        return [[run.input, run.content] for run in turn.history]

    async with worker_of(settings, shop):
        reply = await _ask(broker, "r1", "honey")
    assert reply["content"] == [["tea", "number 1"], ["milk", "number 2"], ["sugar", "number 3"]]


async def test_a_team_of_agno_s_goes_on_too(settings: Settings, broker: TestBroker) -> None:
    team = a_team(Scripted("again"), id="shop", name="Shop", add_history_to_context=True, num_history_runs=2)
    async with worker_of(settings, AgnoExecutor(team)):
        reply = await _ask(broker, "r1", "honey")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "again")
    assert said(team.model.asked[0]) == [
        *("user: milk", "assistant: number 2", "user: sugar", "assistant: number 3"),
        "user: honey",
    ]


async def test_it_stays_its_user_s(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, Team("shop", Recorded(lambda *_: text("again")).model)):
        reply = await _ask(broker, "r1", "honey", user_id="eve")
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "session_forbidden")


@pytest.mark.parametrize("migrated", [False, True], ids=["as it is", "after Agno's own migration"])
async def test_agno_3_reads_what_was_there_and_what_came_here_in_order(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, theirs: AsyncPostgresDb, *, migrated: bool
) -> None:
    async with worker_of(settings, Team("shop", Recorded(lambda *_: text("again")).model)):
        await _ask(broker, "r1", "honey")
        if migrated:
            await MigrationManager(theirs).up()
            assert await database.fetchval("select count(*) from ai.agno_runs") == 1 + RUNS_OF_SHOP + 1
        await _ask(broker, "r2", "jam")
    session: Any = await theirs.get_session(session_id="shop-1", session_type=SessionType.TEAM)
    own = [run.run_id for run in session.runs if run.parent_run_id is None]
    assert own == ["agno2-0", "agno2-1", "agno2-2", "agno2-failed", "r1", "r2"]
    runs = json.loads(await database.fetchval("select runs from ai.sessions where session_id = 'shop-1'"))
    assert [run["run_id"] for run in runs if run.get("parent_run_id") is None] == own


@pytest.mark.parametrize(
    ("changed", "history"),
    [
        (lambda runs: json.dumps(runs[1:]), ["tea", "milk", "sugar"]),
        (lambda _: "no JSON", []),
        (lambda runs: {"runs": runs}, []),
        (lambda _: [None, 7, {}, {"run_id": "x", "input": "odd"}], ["", "odd"]),
        (lambda _: None, []),
    ],
    ids=["a text", "no JSON", "no array", "odd", "nothing"],
)
async def test_whatever_is_in_the_column_the_session_goes_on(
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    changed: Callable[[Any], Any],
    history: list[str],
) -> None:
    @executor("shop", history_runs=10)
    async def shop(turn: Turn) -> Any:
        return [run.input for run in turn.history]

    runs = json.loads((await _row(database))["runs"])
    await database.execute(
        "update ai.agno_sessions set runs = $1::jsonb where session_id = 'shop-1'", json.dumps(changed(runs))
    )
    async with worker_of(settings, shop):
        reply = await _ask(broker, "r1", "honey")
    assert (reply["status"], reply["content"]) == ("COMPLETED", history)


async def test_the_column_can_be_dropped_meanwhile(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, Team("shop", Recorded(lambda *_: text("again")).model)):
        await _ask(broker, "r1", "honey")
        await database.execute("alter table ai.agno_sessions drop column runs")
        reply = await _ask(broker, "r2", "jam")
    assert (reply["status"], reply["turn"]) == ("COMPLETED", 2)
