"""SIGTERM: what has started finishes and is stored, the rest waits for the next worker."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import asyncpg
import pytest

from tests.acceptance.stage import Gates, stored_runs, worker_on
from tests.support.broker import TestBroker
from worker.settings import Settings

QUICKLY_SECONDS = 10


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=lambda told: told.name)
async def test_an_idle_worker_that_is_told_to_stop_exits_0_at_once(
    settings: Settings,
    broker: TestBroker,  # noqa: ARG001 - it deletes the queues afterwards
    told: signal.Signals,
) -> None:
    async with worker_on(settings) as worker:
        await worker.consuming()
        worker.process.send_signal(told)
        assert await worker.exited(seconds=QUICKLY_SECONDS) == 0


async def test_a_turn_that_runs_at_sigterm_is_finished_and_stored(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with worker_on(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        worker.terminate()
        await worker.logged("worker_draining")
        gates.open("gate")
        assert await worker.exited() == 0
    assert [(run["run_id"], run["status"]) for run in await stored_runs(database, "s1")] == [(run_id, "COMPLETED")]


async def test_a_turn_that_was_finished_while_draining_is_answered_by_the_next_worker_with_the_stored_bytes(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with worker_on(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        worker.terminate()
        await worker.logged("worker_draining")
        gates.open("gate")
        await worker.exited()
    stored = await database.fetchval("select reply from ai.receipts where run_id = $1", run_id)
    async with worker_on(settings, gates):
        reply = await broker.reply_message(run_id)
    assert reply.body == stored
    assert gates.visits("gate") == 1


async def test_requests_that_wait_at_sigterm_are_left_to_the_next_worker_in_order(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with worker_on(settings, gates) as worker:
        await worker.consuming()
        asked = [await broker.ask("s1", "gate", team_id="gated") for _ in range(4)]
        await gates.reached("gate")
        worker.terminate()
        await worker.logged("worker_draining")
        gates.open("gate")
        await worker.exited()
    assert gates.visits("gate") == 1
    async with worker_on(settings, gates):
        await broker.replies_of(asked)
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == asked


async def test_a_request_that_only_waited_at_sigterm_is_at_its_first_attempt_when_it_starts(
    settings: Settings, broker: TestBroker, gates: Gates
) -> None:
    async with worker_on(settings, gates) as worker:
        await worker.consuming()
        await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        waiting = await broker.ask("s1", "gate", team_id="gated")
        worker.terminate()
        await worker.logged("worker_draining")
        gates.open("gate")
        await worker.exited()
    async with worker_on(settings, gates):
        assert (await broker.reply(waiting))["attempt"] == 1


async def test_a_turn_that_outlasts_the_drain_timeout_is_not_stored(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with worker_on(settings, gates, TEAMTURN_DRAIN_TIMEOUT="1") as worker:
        await worker.consuming()
        await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        worker.terminate()
        assert await worker.exited(seconds=1 + QUICKLY_SECONDS) == 0
    assert await stored_runs(database, "s1") == []


async def test_a_turn_that_outlasts_the_drain_timeout_runs_again_at_the_next_start(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with worker_on(settings, gates, TEAMTURN_DRAIN_TIMEOUT="1") as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        worker.terminate()
        await worker.exited()
    async with worker_on(settings, gates):
        await gates.reached("gate", times=2)
        gates.open("gate")
        reply = json.loads((await broker.reply_message(run_id)).body)
    assert (reply["status"], reply["attempt"], reply["content"]) == ("COMPLETED", 2, "through gate")
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == [run_id]


async def test_a_turn_that_will_not_be_cancelled_does_not_keep_the_worker(
    settings: Settings, broker: TestBroker, gates: Gates
) -> None:
    async with worker_on(settings, gates, TEAMTURN_DRAIN_TIMEOUT="1") as worker:
        await worker.consuming()
        await broker.ask("s1", "gate", team_id="stubborn")
        await gates.reached("gate")
        worker.terminate()
        assert await worker.exited(seconds=1 + QUICKLY_SECONDS) == 0
