"""100 sessions with 20 requests each, published interleaved: the order holds, whatever happens to the worker."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import asyncpg
import pytest

from tests.acceptance.stage import json_of, worker_on
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker.settings import Settings

SESSIONS = [f"session-{number:03}" for number in range(100)]
REQUESTS = 20
TOTAL = len(SESSIONS) * REQUESTS
PUBLISHED = {session: [f"{session}/{number:02}" for number in range(REQUESTS)] for session in SESSIONS}
ALL_RUNS = {run_id for run_ids in PUBLISHED.values() for run_id in run_ids}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The documented defaults, on which the promise is given."""
    return settings.model_copy(update={"partitions": 16, "prefetch": 128})


async def test_every_session_ends_with_its_runs_in_the_published_order(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_on(settings) as worker:
        await worker.consuming()
        await asyncio.gather(_publish_all(broker), broker.replies_of(list(ALL_RUNS)))
    await _assert_all_in_order(database, broker)


async def test_the_order_survives_a_worker_that_is_killed_again_and_again(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    applied, _, complaint = await run_command("topology", "apply", environment=environment_of(settings))
    assert applied == 0, complaint
    await broker.consume_results()
    publishing = asyncio.create_task(_publish_all(broker))
    for answered in (300, 900, 1_500):
        async with worker_on(settings) as worker:
            await _answered(broker, answered)
            worker.kill()
            await worker.exited()
        assert len({reply.message_id for reply in broker.replies}) < TOTAL, "killed too late to show anything"
    async with worker_on(settings):
        await publishing
        await broker.replies_of(list(ALL_RUNS))
    await _assert_all_in_order(database, broker)


async def _publish_all(broker: TestBroker) -> None:
    for number in range(REQUESTS):
        await asyncio.gather(
            *(
                broker.ask(session, f"question {number}", team_id="worked", run_id=PUBLISHED[session][number])
                for session in SESSIONS
            )
        )


async def _answered(broker: TestBroker, replies: int) -> None:
    await eventually(lambda: len(broker.replies) >= replies, seconds=40)


async def _assert_all_in_order(database: asyncpg.Connection, broker: TestBroker) -> None:
    rows = await database.fetch("select session_id, runs from ai.sessions")
    stored = {row["session_id"]: [run["run_id"] for run in json_of(row["runs"])] for row in rows}
    assert stored == PUBLISHED
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for reply in broker.replies:
        bodies[reply.message_id or ""].add(reply.body)
    assert set(bodies) == ALL_RUNS
    assert {run_id for run_id, different in bodies.items() if len(different) > 1} == set()
