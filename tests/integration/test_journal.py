"""The journal in Postgres: what is recorded on the session's lane, and what another attempt finds."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
from pydantic import JsonValue

from tests.integration.test_claim_and_commit import commit, request_of, store_of
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.errors import LaneLost
from worker.executors.function import executor
from worker.executors.journal import CONTEXT_KEY, StepRecord, StepState
from worker.executors.turn import Turn
from worker.sessions.store import ClaimedSession
from worker.settings import Settings


def a_step(
    key: str, seq: int, state: StepState = StepState.DONE, *, attempt: int = 1, record: bytes = b'{"result":1}'
) -> StepRecord:
    return StepRecord(key, seq, attempt, state, asked=b"\x01\xff", record=record, input_tokens=5, output_tokens=seq)


async def _attempts(claimed: ClaimedSession) -> tuple[int, int]:
    return claimed.claim.attempts, claimed.claim.fruitless


async def test_another_attempt_finds_the_steps_as_they_were_recorded(settings: Settings) -> None:
    odd = b'{"result":{"z":1.0,"a":[null,"\\u0000"]}}'
    steps = [a_step("a#1", 1, record=odd), a_step("b#1", 2, StepState.FAILED), a_step("c#1", 3, StepState.STARTED)]
    async with store_of(settings) as store:
        async with store.claimed(request_of("r1"), 3) as claimed:
            await claimed.record_steps(steps)
        async with store.claimed(request_of("r1"), 3) as claimed:
            earlier = await claimed.begin_attempt()
    assert earlier.attempt == 2
    assert list(earlier.steps) == steps


async def test_a_step_is_written_over_where_it_ends_or_is_another(settings: Settings) -> None:
    ended = a_step("a#1", 2, record=b'{"result":2}')
    async with store_of(settings) as store, store.claimed(request_of("r1"), 3) as claimed:
        await claimed.record_steps([a_step("a#1", 1, StepState.STARTED, record=b"")])
        await claimed.record_steps([ended])
        assert list((await claimed.begin_attempt()).steps) == [ended]


async def test_the_steps_of_many_turns_go_in_one_batch(settings: Settings, database: asyncpg.Connection) -> None:
    async def one(number: int) -> None:
        async with store.claimed(request_of(f"r{number}", f"s{number}"), 3) as claimed:
            for seq in range(1, 4):
                await claimed.record_steps([a_step(f"step#{seq}", seq, record=f'{{"result":{number}}}'.encode())])

    async with store_of(settings) as store:
        await asyncio.gather(*(one(number) for number in range(50)))
    rows = await database.fetch("select run_id, array_agg(record) as records from ai.turn_steps group by run_id")
    assert len(rows) == 50
    for row in rows:
        assert row["records"] == [f'{{"result":{row["run_id"].removeprefix("r")}}}'.encode()] * 3


async def test_the_history_of_the_first_attempt_is_found_again(settings: Settings) -> None:
    context = json.dumps({"started_at": "2030-01-31T12:00:00+00:00", "history": ["r2", "r1"], "summary": None}).encode()
    async with store_of(settings) as store:
        for number in range(1, 5):
            async with store.claimed(request_of(f"r{number}", text=f"question {number}"), 3) as claimed:
                await commit(claimed, f"answer {number}")
        async with store.claimed(request_of("r9"), 1) as claimed:
            await claimed.record_steps([a_step(CONTEXT_KEY, 0, StepState.STARTED, record=context)])
            earlier = await claimed.begin_attempt()
    assert [(run.run_id, run.input, run.content) for run in earlier.history] == [
        ("r1", "question 1", "answer 1"),
        ("r2", "question 2", "answer 2"),
    ]
    assert earlier.context == json.loads(context)


async def test_starts_that_came_to_nothing_are_told_from_those_that_recorded_a_step(settings: Settings) -> None:
    found = []
    async with store_of(settings) as store:
        for number in range(1, 5):
            async with store.claimed(request_of("r1"), 3) as claimed:
                found.append(await _attempts(claimed))
                await claimed.begin_attempt()
                if number == 2:
                    await claimed.record_steps([a_step("a#1", 1, attempt=2)])
                if number == 3:
                    await claimed.uncount_attempt()
    assert found == [(0, 0), (1, 1), (2, 1), (3, 1)]


async def test_the_commit_drops_journal_and_attempts(settings: Settings, database: asyncpg.Connection) -> None:
    async with store_of(settings) as store:
        for run_id in ("r1", "r2"):
            async with store.claimed(request_of(run_id), 3) as claimed:
                await claimed.begin_attempt()
                await claimed.record_steps([a_step("a#1", 1)])
                if run_id == "r1":
                    await commit(claimed)
    for table in ("turn_steps", "turn_attempts"):
        assert await database.fetchval(f"select array_agg(run_id) from ai.{table}") == ["r2"]  # noqa: S608


async def test_a_worker_that_lost_its_lane_records_no_step(settings: Settings, database: asyncpg.Connection) -> None:
    async with store_of(settings) as store, store.claimed(request_of("r1"), 3) as claimed:
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'teamturn lane%'"
            " and datname = current_database()"
        )
        with pytest.raises(LaneLost):
            await claimed.record_steps([a_step("a#1", 1)])
    assert await database.fetchval("select count(*) from ai.turn_steps") == 0


@pytest.mark.parametrize("journal", [True, False])
async def test_a_journal_is_kept_unless_it_is_switched_off(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, *, journal: bool
) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    @executor("stepping", journal=journal)
    async def stepping(turn: Turn) -> JsonValue:
        await turn.step("look", lambda: 1)
        reached.set()
        await go.wait()
        return None

    async with worker_of(settings, stepping):
        run_id = await broker.ask("s1", team_id="stepping")
        await eventually(reached.is_set)
        recorded = await database.fetchval("select count(*) from ai.turn_steps")
        go.set()
        await broker.reply(run_id)
    assert recorded == (2 if journal else 0)


async def test_a_lane_that_is_lost_again_and_again_makes_no_run_poison(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    starts, go = 0, asyncio.Event()

    @executor("stuck")
    async def stuck(turn: Turn) -> JsonValue:
        nonlocal starts
        starts += 1
        if starts <= 5:
            await go.wait()
            await turn.step("never begun", lambda: None)
        return turn.attempt

    async with worker_of(settings.model_copy(update={"max_attempts": 2}), stuck):
        run_id = await broker.ask("s1", team_id="stuck")
        for number in range(1, 6):
            await eventually(lambda number=number: starts == number)  # type: ignore[misc]
            await eventually(lambda: _attempt_recorded(database))
            await database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'teamturn lane%'"
                " and datname = current_database()"
            )
            go.set()
            await asyncio.sleep(0)
            go.clear()
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["content"]) == ("COMPLETED", 6)


async def _attempt_recorded(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("select count(*) from ai.turn_attempts"))
