"""From Agno's storage to teamturn and back, and there again, by the steps of worker/agno/README.md."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from agno.db.base import SessionType
from agno.db.postgres import AsyncPostgresDb
from agno.models.message import Message

from tests.acceptance.stage import database_of_its_own
from tests.support.broker import TestBroker
from tests.support.workers import ROOT, environment_of, run_command, worker_of
from tests.unit.agno_objects import Scripted, a_team, said
from tests.unit.models import Recorded, prompts, text
from worker.agno.executor import AgnoExecutor
from worker.sandbox import Sandbox
from worker.settings import Settings
from worker.team.team import Team


@pytest.fixture
async def postgres_url(sandbox: Sandbox) -> AsyncIterator[str]:
    """An empty database."""
    async with database_of_its_own(sandbox, None) as url:
        yield url


@pytest.fixture
async def theirs(postgres_url: str) -> AsyncIterator[AsyncPostgresDb]:
    """Agno's own database, which makes its tables."""
    db = AsyncPostgresDb(db_url=postgres_url.replace("postgresql://", "postgresql+asyncpg://"))
    yield db
    await db.close()


@pytest.fixture
async def admin(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


def _newest(messages: list[Message]) -> str:
    return [str(message.content) for message in messages if message.role == "user"][-1]


def _remembered(*asked: str) -> list[str]:
    """What a model is shown of a conversation in which so much was asked, the last of it now."""
    before = [line for one in asked[:-1] for line in (f"user: {one}", f"assistant: re {one}")]
    return [*before, f"user: {asked[-1]}"]


def _clean_up() -> str:
    """What that page has whoever leaves run."""
    (found,) = re.findall(
        r"```sql\n(drop view.*?)```", (ROOT / "worker" / "agno" / "README.md").read_text(), flags=re.DOTALL
    )
    return str(found)


async def _migrate(settings: Settings) -> None:
    code, _, err = await run_command("migrate", environment=environment_of(settings))
    assert code == 0, err


async def test_a_session_travels_there_and_back_with_every_turn_remembered(
    settings: Settings, theirs: AsyncPostgresDb, admin: asyncpg.Connection
) -> None:
    model = Scripted(lambda messages: f"re {_newest(messages)}")
    remembering: dict[str, Any] = {"id": "t1", "name": "T", "add_history_to_context": True, "num_history_runs": 10}
    of_agno = a_team(model, **remembering, db=theirs, session_state={"opened": True})
    ours = AgnoExecutor(a_team(model, **remembering))

    async def at_agno(asked: str) -> None:
        await of_agno.arun(asked, session_id="s1", user_id="u1", run_id=str(uuid.uuid4()))

    async def here(asked: str) -> dict[str, Any]:
        async with (
            TestBroker(settings.amqp_url.get_secret_value(), settings.prefix) as broker,
            worker_of(settings, ours),
        ):
            reply = await broker.reply(await broker.ask("s1", asked, team_id="t1", user_id="u1"))
            await broker.delete_everything(settings.partitions)
        return reply

    await at_agno("one")
    await at_agno("two")
    await theirs.rename_session("s1", SessionType.TEAM, "Journey")
    await _migrate(settings)
    assert (await here("three"))["content"] == "re three"
    assert said(model.asked[-1]) == _remembered("one", "two", "three")
    await at_agno("four")
    assert said(model.asked[-1]) == _remembered("one", "two", "three", "four")
    assert (await here("five"))["content"] == "re five"
    assert said(model.asked[-1]) == _remembered("one", "two", "three", "four", "five")

    await admin.execute(_clean_up())
    await at_agno("six")
    assert said(model.asked[-1]) == _remembered("one", "two", "three", "four", "five", "six")
    session: Any = await theirs.get_session(session_id="s1", session_type=SessionType.TEAM)
    assert (session.session_data["session_name"], session.session_data["session_state"]) == (
        "Journey",
        {"opened": True},
    )
    assert session.session_data["session_metrics"]["input_tokens"] == 6 * 10
    left = await admin.fetch("select table_name from information_schema.tables where table_schema = 'ai'")
    assert {row["table_name"] for row in left} == {"agno_sessions", "agno_runs", "agno_schema_versions"}


async def test_a_team_of_teamturn_s_own_takes_agno_s_conversation_over(
    settings: Settings, broker: TestBroker, theirs: AsyncPostgresDb
) -> None:
    of_agno = a_team(Scripted(lambda messages: f"re {_newest(messages)}"), id="t1", name="T", db=theirs)
    await of_agno.arun("one", session_id="s1", user_id="u1", run_id=str(uuid.uuid4()))
    await _migrate(settings)
    leader = Recorded(lambda *_: text("re two"))
    async with worker_of(settings, Team("t1", leader.model)):
        reply = await broker.reply(await broker.ask("s1", "two", team_id="t1", user_id="u1"))
    assert (reply["content"], reply["turn"]) == ("re two", 1)
    assert prompts(leader.asked[0]) == ["one", "two"]
