"""Postgres itself stopped, crashed and started again: nothing is lost, failed, done twice or out of order."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr
from yarl import URL

from tests.acceptance.stage import DATA, Gates, worker_on
from tests.support.broker import TestBroker
from tests.support.fleet import TEAMS
from tests.support.load import Load
from tests.support.own_servers import own_postgres
from tests.support.probing import Probe, free_port
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, environment_of, run_command
from worker.broker import connected
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox
from worker.sandbox.server import Server
from worker.sessions.database import connect
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres() -> AsyncIterator[Server]:
    async with own_postgres() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def own(sandbox: Sandbox, postgres: Server) -> AsyncIterator[Settings]:
    """Settings with that Postgres, and with a database and a prefix of the test's own."""
    name = uuid.uuid4().hex[:8]
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f'create database "{name}"')
    await admin.close()
    own = Settings(
        amqp_url=SecretStr(sandbox.amqp_url),
        postgres_url=SecretStr(str(URL(postgres.url).with_path(f"/{name}"))),
        prefix=f"t-{name}",
        partitions=4,
        prefetch=8,
    )
    code, _, err = await run_command("migrate", environment=environment_of(own))
    assert code == 0, err
    async with connected(own.amqp_url, name="test") as amqp:
        await apply(amqp.amqp, Topology(prefix=own.prefix, partitions=own.partitions))
    async with TestBroker(sandbox.amqp_url, own.prefix) as broker:
        yield own
        await broker.delete_everything(own.partitions)


async def test_while_it_is_stopped_the_worker_is_not_ready_and_a_turn_that_ends_keeps_its_result(
    own: Settings, postgres: Server, tmp_path: Path
) -> None:
    gates, probe = Gates(tmp_path), Probe(free_port())
    async with (
        TestBroker(own.amqp_url.get_secret_value(), own.prefix) as broker,
        worker_on(own, gates, TEAMTURN_HTTP_PORT=str(probe.port)) as worker,
    ):
        await eventually(probe.is_ready)
        run_id = await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        await asyncio.to_thread(postgres.stop)
        await eventually(partial(probe.says, "Postgres can't be reached"))
        gates.open("gate")
        await worker.logged("result_kept")
        waiting = await broker.ask("s2", "gate", team_id="gated")
        await asyncio.to_thread(postgres.start)
        replies = [await broker.reply(one) for one in (run_id, waiting)]
        await eventually(probe.is_ready)
    assert [(reply["status"], reply["attempt"]) for reply in replies] == [("COMPLETED", 1), ("COMPLETED", 1)]
    assert gates.visits("gate") == 2


async def test_told_to_stop_while_it_is_stopped_a_worker_ends_in_the_stated_time(
    own: Settings, postgres: Server, tmp_path: Path
) -> None:
    gates = Gates(tmp_path)
    async with (
        TestBroker(own.amqp_url.get_secret_value(), own.prefix) as broker,
        worker_on(own, gates, TEAMTURN_DRAIN_TIMEOUT="2") as worker,
    ):
        await worker.consuming()
        await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        await asyncio.to_thread(postgres.stop)
        try:
            gates.open("gate")
            await worker.logged("result_kept")
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.exited(seconds=10) == 0
        finally:
            await asyncio.to_thread(postgres.start)


def _crashed(postgres: Server) -> None:
    postgres.kill()
    postgres.start()


def _restarted(postgres: Server) -> None:
    postgres.restart()


@dataclass(frozen=True)
class _Busy:
    load: Load
    workers: list[WorkerProcess]


@asynccontextmanager
async def _busy(own: Settings, *, workers: int, team_id: str = "steady", ahead: int = 8) -> AsyncIterator[_Busy]:
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(Load(own, sessions_each=2, ahead=ahead, team_id=team_id))
        crew = [await stack.enter_async_context(worker_on(own, teams=TEAMS, cwd=DATA)) for _ in range(workers)]
        for worker in crew:
            await worker.logged("worker_started")
        await load.flows()
        yield _Busy(load, crew)


async def _mistakes(own: Settings, load: Load) -> list[str]:
    database = await connect(own.postgres_url, own.db_schema, application="test")
    try:
        return await load.mistakes(database)
    finally:
        await database.close()


async def _goes_down_twice(postgres: Server, load: Load) -> None:
    """It crashes, and is restarted in good order; after each the load flows again."""
    for happens in (_crashed, _restarted):
        await asyncio.to_thread(happens, postgres)
        await load.flows(seconds=40)
    await load.finish()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
async def test_under_load_each_request_is_stored_and_answered_once_and_in_order(
    own: Settings, postgres: Server, workers: int
) -> None:
    async with _busy(own, workers=workers) as busy:
        await _goes_down_twice(postgres, busy.load)
        mistakes = await _mistakes(own, busy.load)
        repeated = busy.load.repeated_turns()
    assert mistakes == []
    if workers == 1:
        assert repeated == set(), "what was finished was committed, and not executed again"


@pytest.mark.slow
async def test_no_worker_is_given_a_turn_that_another_is_still_at(own: Settings, postgres: Server) -> None:
    # Turns of 0.6 s: more of them wait in each partition than are delivered, and no more than that.
    async with _busy(own, workers=2, team_id="paying", ahead=5) as busy:
        await _goes_down_twice(postgres, busy.load)
        mistakes = await _mistakes(own, busy.load)
    assert mistakes == []
    ends = {json.loads(answer.body)["status"] for answer in busy.load.answers}
    assert ends == {"COMPLETED"}, "a step that another worker had begun would be uncertain"


async def test_without_room_for_locks_turns_wait_and_none_fails(own: Settings, postgres: Server) -> None:
    async with (
        TestBroker(own.amqp_url.get_secret_value(), own.prefix) as broker,
        worker_on(own) as worker,
    ):
        await worker.consuming()
        greedy = await asyncpg.connect(postgres.url)
        try:
            with pytest.raises(asyncpg.OutOfMemoryError):
                await greedy.execute("select pg_advisory_lock(number) from generate_series(1, 1000000) as number")
            asked = [await broker.ask(f"s{number}") for number in range(3)]
            await worker.logged("turn_claimed_again")
        finally:
            await greedy.close()
        replies = [await broker.reply(run_id) for run_id in asked]
        reasons = {event["reason"] for event in worker.events("turn_claimed_again")}
    assert reasons == {"out of shared memory"}
    assert [(reply["status"], reply["attempt"]) for reply in replies] == [("COMPLETED", 1)] * 3
