"""A team's code that keeps the event loop: the worker comes round again, and nothing is lost or done twice for it."""

from __future__ import annotations

import asyncio
from functools import partial

import asyncpg
import pytest

from tests.acceptance.stage import DATA, stored_runs, worker_on
from tests.support.broker import TestBroker
from tests.support.fleet import TEAMS, a_session_of
from tests.support.probing import Probe, free_port
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker.settings import Settings

SHORT_SECONDS = 6
"""Longer than RabbitMQ's heartbeats and Postgres's pings are apart, shorter than what costs the connections."""
LONG_SECONDS = 20
"""Postgres ends an idle lane after 15."""


async def test_after_some_seconds_the_worker_goes_on_as_if_nothing_had_been(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    probe = Probe(free_port())
    async with worker_on(settings, teams=TEAMS, cwd=DATA, TEAMTURN_HTTP_PORT=str(probe.port)) as worker:
        await worker.consuming()
        blocking = await broker.ask("s1", str(SHORT_SECONDS), team_id="blocking")
        await eventually(partial(does_not_answer, probe))
        asked = [await broker.ask(f"s{number % 4}", "0", team_id="blocking") for number in range(40)]
        await broker.replies_of([blocking, *asked])
        await eventually(probe.is_ready)
        lost = [*worker.events("lane_lost"), *worker.events("channel_lost"), *worker.events("partitions_given_up")]
    assert lost == []
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == [blocking, *asked[1::4]]
    assert len(broker.replies) == 1 + len(asked)


async def does_not_answer(probe: Probe) -> bool:
    """Whether its probe fails."""
    try:
        async with asyncio.timeout(1):
            return not await probe.ready()
    except TimeoutError:
        return True


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_after_longer_it_has_lost_its_place_and_what_it_had_finished_is_stored_all_the_same(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    applied, _, complaint = await run_command("topology", "apply", environment=environment_of(settings))
    assert applied == 0, complaint
    sessions = [a_session_of(number, settings) for number in range(settings.partitions)]
    async with worker_on(settings, teams=TEAMS, cwd=DATA) as one, worker_on(settings, teams=TEAMS, cwd=DATA) as other:
        for worker in (one, other):
            await worker.consuming()
        blocking = await broker.ask(sessions[0], str(LONG_SECONDS), team_id="blocking")
        behind = [await broker.ask(sessions[number % 2], "0", team_id="blocking") for number in range(20)]
        await broker.replies_of([blocking, *behind], seconds=120)
        assert (one.process.returncode, other.process.returncode) == (None, None)
        assert [*one.events("lane_lost"), *other.events("lane_lost")]
    assert [run["run_id"] for run in await stored_runs(database, sessions[0])] == [blocking, *behind[0::2]]
    assert [run["run_id"] for run in await stored_runs(database, sessions[1])] == behind[1::2]
