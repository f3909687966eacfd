"""An upgrade from the last release, and the way back, under load: nothing is lost, and sessions keep their order."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

import sql
from tests.acceptance.stage import DATA, Gates, database_of_its_own, worker_on
from tests.support.broker import TestBroker
from tests.support.fleet import under_load
from tests.support.releases import Release
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of, run_command, run_python
from worker.errors import StartupError
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.sessions.migrations import migrate, require_current, schema_state
from worker.settings import Settings

FUTURE = 9_999
PATIENCE = 60
"""Seconds: these workers start one after the other, and the other tests have the processors, too."""


@asynccontextmanager
async def empty_database(sandbox: Sandbox) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    async with database_of_its_own(sandbox, template=None) as url:
        connection = await connect(SecretStr(url), "ai", application="test", writes=True)
        try:
            yield url, connection
        finally:
            await connection.close()


async def test_workers_are_upgraded_and_rolled_back_under_load(sandbox: Sandbox, last_release: Release) -> None:
    async with under_load(sandbox, None, ahead=3) as scene:
        here, there = environment_of(scene.settings), environment_of(scene.settings, PYTHONPATH=last_release.path)
        assert (await run_command("migrate", environment=there, cwd=DATA))[0] == 0
        old = [await scene.crew.hire(PYTHONPATH=last_release.path) for _ in range(2)]
        await scene.load.flows(seconds=PATIENCE)
        # The schema goes first: the old workers go on, and one that comes is let in.
        assert (await run_command("migrate", environment=here))[0] == 0
        assert (await schema_state(scene.database, "ai")).missing == ()
        await scene.load.flows(seconds=PATIENCE)
        old[0].kill()
        old[0] = await scene.crew.hire(PYTHONPATH=last_release.path)
        new = [await scene.crew.hire() for _ in range(2)]
        await scene.crew.settled(*old, *new, seconds=PATIENCE)
        await scene.load.flows(seconds=PATIENCE)
        for one in old:
            one.terminate()
        assert [await one.exited() for one in old] == [0, 0]
        await scene.crew.settled(*new, seconds=PATIENCE)
        await scene.load.flows(seconds=PATIENCE)
        # And back.
        again = await scene.crew.hire(PYTHONPATH=last_release.path)
        for one in new:
            one.terminate()
        assert [await one.exited() for one in new] == [0, 0]
        await scene.crew.settled(again, seconds=PATIENCE)
        await scene.load.flows(seconds=PATIENCE)
        await scene.load.finish(seconds=PATIENCE)
        assert await scene.load.mistakes(scene.database) == []


@pytest.fixture(params=["the last release", "this version"])
def begun_and_resumed_by(last_release: Release, request: pytest.FixtureRequest) -> list[str]:
    """Where the code of the two is, of the named one first."""
    paths = [last_release.path, str(ROOT)]
    return paths if request.param == "the last release" else paths[::-1]


async def test_a_turn_that_one_version_has_begun_goes_on_in_the_other_behind_its_last_step(
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    begun_and_resumed_by: list[str],
    tmp_path: Path,
) -> None:
    gates, team = Gates(tmp_path), "durable_teams:everything"
    first, second = begun_and_resumed_by
    async with worker_on(settings, gates, teams=team, PYTHONPATH=first) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "go", team_id="crew-stuck-asker")
        await gates.reached("asker-gate-0")
        recorded = "select count(*) from ai.turn_steps where key like 'payer%/model.request#2' and state = 'done'"
        await eventually(lambda: database.fetchval(recorded))
        worker.kill()
        await worker.exited()
    gates.open("asker-gate-0")
    async with worker_on(settings, gates, teams=team, PYTHONPATH=second) as worker:
        await worker.consuming()
        reply = await broker.reply(run_id, seconds=PATIENCE)
    assert (reply["status"], reply["attempt"]) == ("COMPLETED", 2)
    made = {name: gates.visits(name) for name in ("leader-0", "payer-0", "pay", "payer-1", "asker-gate-0", "leader-1")}
    assert made == {"leader-0": 1, "payer-0": 1, "pay": 1, "payer-1": 1, "asker-gate-0": 2, "leader-1": 1}


async def test_the_last_release_starts_where_this_version_has_made_the_schema(
    sandbox: Sandbox, last_release: Release
) -> None:
    async with empty_database(sandbox) as (url, database):
        await migrate(database, "ai")
        settings = Settings(amqp_url=SecretStr(sandbox.amqp_url), postgres_url=SecretStr(url))
        environment = environment_of(settings, PYTHONPATH=last_release.path)
        ended = await run_command("sessions", "list", "--json", environment=environment, cwd=DATA)
        assert (ended[0], ended[2]) == (0, "")


# --- a newer schema than this program knows ---


async def test_a_newer_schema_that_is_compatible_is_worked_with(
    settings: Settings, database: asyncpg.Connection
) -> None:
    newest = sql.MIGRATIONS[-1].version
    await database.execute(sql.RECORD_MIGRATION, FUTURE, "of the future", newest)
    await require_current(database, settings.db_schema)
    code, out, _ = await run_command("migrate", environment=environment_of(settings))
    assert (code, out) == (0, "schema 'ai' is up to date\n")


@pytest.mark.parametrize("compatible_with", [None, sql.MIGRATIONS[-1].version + 1])
async def test_a_newer_schema_that_is_not_compatible_is_refused(
    settings: Settings, database: asyncpg.Connection, compatible_with: int | None
) -> None:
    await database.execute(sql.RECORD_MIGRATION, FUTURE, "of the future", compatible_with)
    with pytest.raises(StartupError, match=f"is at version {FUTURE}, .* install the version of teamturn"):
        await require_current(database, settings.db_schema)


async def test_the_last_release_refuses_a_schema_that_it_can_t_work_with(
    settings: Settings, database: asyncpg.Connection, last_release: Release
) -> None:
    await database.execute(sql.RECORD_MIGRATION, FUTURE, "of the future", FUTURE)
    environment = environment_of(settings, PYTHONPATH=last_release.path)
    ended = await run_command("sessions", "list", environment=environment, cwd=DATA)
    assert ended[0] == 2
    assert re.search(f"is at version {FUTURE}", ended[2])


# --- a table that is in use ---


async def test_a_migration_gives_up_a_table_that_somebody_keeps_locked_and_changes_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with empty_database(sandbox) as (url, database):
        await migrate(database, "ai")
        adds = sql.Migration(FUTURE, "adds", "create table added (); alter table receipts add column added integer;")
        monkeypatch.setattr(sql, "MIGRATIONS", (*sql.MIGRATIONS, adds))
        other = await connect(SecretStr(url), "ai", application="other")
        async with other.transaction():
            await other.fetch("select from receipts")
            with pytest.raises(StartupError, match="a long transaction keeps a table of it locked"):
                await migrate(database, "ai")
        assert await database.fetchval("select to_regclass('added')") is None
        assert await migrate(database, "ai") == (adds,)
        await other.close()


async def test_what_these_tests_start_is_the_last_release(settings: Settings, last_release: Release) -> None:
    environment = environment_of(settings, PYTHONPATH=last_release.path)
    program = "import sql, worker; print(worker.__file__, sql.MIGRATIONS[-1].version)"
    ended = await run_python("-c", program, environment=environment, cwd=DATA, seconds=30)
    assert ended[1].split() == [str(last_release.folder / "worker" / "__init__.py"), "10"]
