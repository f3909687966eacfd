"""The cases in which Agno's own storage falls short, on both: the same Agno Team with Agno's database, and on a worker.

What a worker makes of a case is asserted; what Agno makes of it is printed (`pytest -s`), for it may change.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
import pytest
from agno.db.base import SessionType
from agno.db.postgres import AsyncPostgresDb
from agno.models.message import Message
from agno.run import RunContext
from pydantic import SecretStr
from sqlalchemy import event

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.wire_tap import WireTap
from tests.support.workers import worker_of
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in
from worker.agno.executor import AgnoExecutor
from worker.settings import Settings
from worker.turns import starts

THEIRS = "theirs"
"""The schema that Agno's own side writes."""


@pytest.fixture
async def theirs(postgres_url: str) -> AsyncIterator[AsyncPostgresDb]:
    """Agno's own database, in a schema of its own."""
    url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")
    db = AsyncPostgresDb(db_url=url, db_schema=THEIRS)
    yield db
    await db.close()


class Case:
    """A team that adds one to a counter in the session's state, and is slow enough for others to come in between."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()

    def team(self, **fields: Any) -> Any:
        async def add(run_context: RunContext) -> str:
            """Add one."""
            state = run_context.session_state
            assert state is not None
            self.executed[run_context.run_id] += 1
            state["counter"] = state.get("counter", 0) + 1
            await asyncio.sleep(0.1)
            return f"{state['counter']}"

        def answer(messages: list[Message]) -> Any:
            return " ".join(results_in(messages)) or calls(("add", {}))

        return a_team(Scripted(answer), id="adder", name="Adder", tools=[add], **fields)


async def _their_session(db: AsyncPostgresDb, session_id: str = "s1") -> Any:
    return await db.get_session(session_id=session_id, session_type=SessionType.TEAM)


def _bodies_of(broker: TestBroker, run_id: str) -> list[bytes]:
    return [message.body for message in broker.replies if message.message_id == run_id]


def _said(case: str, **found: object) -> None:
    print(f"Agno, {case}: {found}")


async def test_concurrent_turns_of_a_session_each_count(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    team = Case().team(db=theirs)
    await team.arun("go", session_id="s1")
    await asyncio.gather(*(team.arun("go", session_id="s1") for _ in range(4)))
    session = await _their_session(theirs)
    indexes = await database.fetch("select run_index from theirs.agno_runs")
    _said("five turns", counter=session.session_data["session_state"]["counter"], indexes=[row[0] for row in indexes])

    async with worker_of(settings, AgnoExecutor(Case().team())):
        await broker.reply(await broker.ask("s1", team_id="adder"))
        for run_id in [await broker.ask("s1", team_id="adder") for _ in range(4)]:
            reply = await broker.reply(run_id)
            assert reply["status"] == "COMPLETED"
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    assert data["session_state"]["counter"] == 5
    assert data["session_metrics"]["total_tokens"] == 5 * 2 * 12
    rows = await database.fetch("select run_index from ai.agno_runs order by run_index")
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4]


async def test_a_run_that_is_delivered_twice_is_executed_once(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    case = Case()
    for _ in range(2):
        await case.team(db=theirs).arun("go", session_id="s1", run_id="r1")
    session = await _their_session(theirs)
    _said("delivered twice", executed=case.executed["r1"], metrics=session.session_data["session_metrics"])

    case = Case()
    async with worker_of(settings, AgnoExecutor(case.team())):
        for _ in range(2):
            await broker.publish({"run_id": "r1", "session_id": "s1", "team_id": "adder", "input": "go"})
        await broker.consume_results()
        await eventually(lambda: len(_bodies_of(broker, "r1")) == 2)
    assert case.executed["r1"] == 1
    assert len(set(_bodies_of(broker, "r1"))) == 1
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    assert (data["session_state"]["counter"], data["session_metrics"]["total_tokens"]) == (1, 2 * 12)


@contextmanager
def _reads_of_sessions_fail(db: AsyncPostgresDb) -> Iterator[None]:
    """Have Postgres fail whatever reads a session."""

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and "agno_sessions" in statement:
            raise OSError("Postgres is away")

    event.listen(db.db_engine.sync_engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(db.db_engine.sync_engine, "before_cursor_execute", fail)


async def test_a_session_that_can_t_be_read_is_not_overwritten(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    team = Case().team(db=theirs)
    await team.arun("go", session_id="s1")
    await theirs.rename_session("s1", SessionType.TEAM, "Groceries")
    with _reads_of_sessions_fail(theirs):
        run = await team.arun("go", session_id="s1")
    _said("not read", status=run.status, data=(await _their_session(theirs)).session_data)

    async with worker_of(settings, AgnoExecutor(Case().team())):
        await broker.reply(await broker.ask("s1", team_id="adder"))
        await database.execute(
            """
            update ai.agno_sessions set session_data = session_data || '{"session_name": "Groceries"}';
            alter function ai.claim_turns(jsonb) rename to claim_turns_away;
            """
        )
        run_id = await broker.ask("s1", team_id="adder")
        await asyncio.sleep(0.5)
        assert _bodies_of(broker, run_id) == [], "nothing is answered while the session can't be read"
        await database.execute("alter function ai.claim_turns_away(jsonb) rename to claim_turns")
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["turn"]) == ("COMPLETED", 2)
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    assert (data["session_name"], data["session_state"]["counter"]) == ("Groceries", 2)


_REFUSE_RUNS = """
create function {schema}.refused() returns trigger language plpgsql as $$ begin raise exception 'no'; end; $$;
create trigger refused before insert on {schema}.agno_runs for each row execute function {schema}.refused();
"""


async def test_nobody_is_told_completed_of_a_run_that_is_not_stored(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    team = Case().team(db=theirs)
    await team.arun("go", session_id="s0")
    await database.execute(_REFUSE_RUNS.format(schema=THEIRS))
    run = await team.arun("go", session_id="s1")
    stored = await database.fetchval("select count(*) from theirs.agno_runs where session_id = 's1'")
    _said("not stored", told=run.status, stored=stored)

    await database.execute(_REFUSE_RUNS.format(schema="ai"))
    async with worker_of(settings, AgnoExecutor(Case().team())):
        run_id = await broker.ask("s1", team_id="adder")
        await broker.consume_results()
        await asyncio.sleep(1)
        assert _bodies_of(broker, run_id) == [], "nothing is answered while the run can't be stored"
        await database.execute("drop trigger refused on ai.agno_runs")
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["turn"]) == ("COMPLETED", 1)
    assert await database.fetchval("select count(*) from ai.agno_runs where run_id = $1", run_id) == 1


async def test_another_user_s_run_does_not_land_in_the_session(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb, database: asyncpg.Connection
) -> None:
    team = Case().team(db=theirs)
    await team.arun("go", session_id="s1", user_id="ada")
    with suppress(Exception):
        await team.arun("go", session_id="s1", user_id="eve")
    session = await _their_session(theirs)
    _said("another user", owner=session.user_id, runs=len(session.runs), state=session.session_data["session_state"])

    case = Case()
    async with worker_of(settings, AgnoExecutor(case.team())):
        await broker.reply(await broker.ask("s1", team_id="adder", user_id="ada"))
        reply = await broker.reply(await broker.ask("s1", team_id="adder", user_id="eve"))
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "session_forbidden")
    assert case.executed.total() == 1
    assert await database.fetchval("select count(*) from ai.agno_runs") == 1


@pytest.mark.parametrize(("delegated", "requests"), [(False, 1), (True, 3)], ids=["a leader alone", "with one member"])
async def test_a_turn_takes_few_statements(
    settings: Settings,
    broker: TestBroker,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    delegated: bool,
    requests: int,
) -> None:
    # On a busy machine each turn would take that long, and have its start recorded.
    monkeypatch.setattr(starts, "_RECORD_AFTER_SECONDS", 60.0)

    def lead(messages: list[Message]) -> Any:
        if not delegated:
            return "fine"
        return " ".join(results_in(messages)) or delegates(("clerk", "serve"))

    def team(**fields: Any) -> Any:
        clerk = an_agent(Scripted("served"), id="clerk", name="clerk")
        return a_team(Scripted(lead), clerk, id="adder", add_history_to_context=True, **fields)

    async with WireTap(postgres_url) as tap:
        db = AsyncPostgresDb(db_url=tap.url.replace("postgresql://", "postgresql+asyncpg://"), db_schema=THEIRS)
        own = team(db=db)
        for number in range(2):
            await own.arun(f"go {number}", session_id="s1")
        before = tap.statements
        await own.arun("go", session_id="s1")
        of_agno = tap.statements - before
        await db.close()
    _said("statements of a turn", number=of_agno)

    async with WireTap(postgres_url) as tap:
        tapped = settings.model_copy(update={"postgres_url": SecretStr(tap.url)})
        of_ours, made = [], []
        async with worker_of(tapped, AgnoExecutor(team())):
            for number in range(5):
                before = tap.statements
                reply = await broker.reply(await broker.ask("s1", f"go {number}", team_id="adder"))
                await asyncio.sleep(0.1)  # the unlock follows the reply
                of_ours.append(tap.statements - before)
                made.append(reply["metrics"]["model_requests"])
    print(f"and of ours: {of_ours}")
    assert made == [requests] * 5
    # Claim, the stored runs, one for each step, commit, unlock; now and then a look at the fleet.
    assert min(of_ours) == 4 + requests
    assert min(of_ours) < of_agno / 2
