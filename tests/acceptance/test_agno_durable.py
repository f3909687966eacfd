"""Agno's teams whose workers die in the middle of turns: what models answered, and tools did, is not done again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.acceptance.stage import DATA, Gates, json_of, worker_on
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, environment_of
from worker.settings import Settings


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


def a_worker(settings: Settings, gates: Gates) -> WorkerProcess:
    return worker_on(settings, gates, teams="agno_teams:everything", cwd=DATA)


async def _recorded(database: asyncpg.Connection, key: str, times: int) -> None:
    async with asyncio.timeout(20):
        while await database.fetchval("select count(*) from ai.turn_steps where key like $1", key) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("leader", "asker", "gate"),
    [("leader-gate", "asker", "leader-gate-2"), ("leader", "asker-gate", "asker-gate-0")],
    ids=["leader", "member"],
)
async def test_a_killed_turn_goes_on_and_what_was_recorded_is_made_once_members_included(  # noqa: PLR0917
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    gates: Gates,
    leader: str,
    asker: str,
    gate: str,
) -> None:
    gates.open("leader-gate-0")
    team = "crew-stuck-leader" if gate.startswith("leader") else "crew-stuck-asker"
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "go", team_id=team)
        await gates.reached(gate)
        # Who works side by side with what waits at the gate has come to its end, too.
        await eventually(lambda: gates.visits("payer-1") == 1)
        await _recorded(database, "payer%/model.request#1", times=2)
        worker.kill()
        await worker.exited()
    gates.open(gate)
    async with a_worker(settings, gates) as worker:
        reply = await broker.reply(run_id)
        assert len(worker.events("turn_resumed")) == 1
    assert (reply["status"], reply["attempt"]) == ("COMPLETED", 2)
    assert reply["content"] == f"{leader}: payer: receipt 3, {asker}: asked"
    names = (f"{leader}-0", f"{leader}-2", "payer-0", "payer-1", f"{asker}-0", "pay")
    assert {name: gates.visits(name) for name in names} == {name: 2 if name == gate else 1 for name in names}
    data = await database.fetchval("select session_data from ai.sessions where session_id = 's1'")
    assert json_of(data)["session_state"] == {"paid": 3}
    assert (reply["metrics"]["model_requests"], reply["metrics"]["total_tokens"]) == (5, 60)


_AGNO_ALONE = """
import asyncio, sys
from agno.db.postgres import AsyncPostgresDb
from agno_teams import everything

team = everything[0]
team.db = AsyncPostgresDb(db_url=sys.argv[1], db_schema="theirs")
print(asyncio.run(team.arun("go", session_id="s1", run_id="r1")).content)
"""


async def _agno_alone(settings: Settings, gates: Gates) -> asyncio.subprocess.Process:
    """The same team in a process of its own, with Agno's storage."""
    url = settings.postgres_url.get_secret_value().replace("postgresql://", "postgresql+asyncpg://")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _AGNO_ALONE, url),
        env=environment_of(settings, TEST_GATES=str(gates.folder)),
        cwd=DATA,
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.slow
async def test_beside_agno_a_turn_whose_worker_died_is_resumed_and_not_begun_again(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, tmp_path: Path
) -> None:
    theirs, ours = Gates(tmp_path / "theirs"), Gates(tmp_path / "ours")
    for gates in (theirs, ours):
        gates.folder.mkdir()
        gates.open("leader-gate-0")

    alone = await _agno_alone(settings, theirs)
    await theirs.reached("leader-gate-2")
    alone.kill()
    await alone.wait()
    theirs.open("leader-gate-2")
    again = await _agno_alone(settings, theirs)
    out, _ = await again.communicate()
    print(f"Agno, a run whose process died: paid {theirs.visits('pay')} times, answered {out.decode().strip()!r}")

    async with a_worker(settings, ours) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "go", team_id="crew-stuck-leader")
        await ours.reached("leader-gate-2")
        await _recorded(database, "payer%/model.request#1", times=2)
        worker.kill()
        await worker.exited()
    ours.open("leader-gate-2")
    async with a_worker(settings, ours):
        reply = await broker.reply(run_id)
    assert (reply["status"], ours.visits("pay"), ours.visits("leader-gate-0")) == ("COMPLETED", 1, 1)
