"""Agno's teams whose workers die in the middle of turns: what models answered, and tools did, is not done again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from tests.acceptance.stage import DATA, Gates, json_of, worker_on
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess
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
