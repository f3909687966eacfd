"""Sessions of large runs: what is read of them is bounded by bytes, so that none is ever too large to go on."""

from __future__ import annotations

import json

import asyncpg
import pytest

from tests.integration.test_claim_and_commit import request_of, store_of
from tests.support.broker import TestBroker
from tests.support.workers import worker_of
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings

_MEGABYTE = 1_000_000


async def store_runs(database: asyncpg.Connection, *characters: int) -> None:
    """Store a session of completed runs, "r0", "r1", …, whose answers have so many characters."""
    await database.execute(
        "insert into agno_sessions (session_id, session_type, team_id, created_at) values ('s1', 'team', 'echo', 1)"
    )
    await database.execute(
        """insert into agno_runs (run_id, session_id, run_type, status, run_index, run_data, created_at)
           select 'r' || n - 1, 's1', 'team', 'COMPLETED', n - 1, jsonb_build_object(
               'run_id', 'r' || n - 1, 'created_at', 1, 'input', jsonb_build_object('input_content', 'q'),
               'content', repeat('x', characters)
           ), 1
           from unnest($1::integer[]) with ordinality as answer (characters, n)""",
        characters,
    )


@pytest.mark.parametrize(
    ("megabytes", "shown"),
    [
        ([6, 6, 6, 6], ["r2", "r3"]),
        ([1, 1, 20], ["r2"]),
        ([1, 9, 1, 9], ["r2", "r3"]),
        ([1, 1, 1], ["r0", "r1", "r2"]),
    ],
    ids=["as many as fit", "one at least", "none before one that does not fit", "all that there are"],
)
@pytest.mark.parametrize("limits", [(None, False), (3, True)], ids=["all runs", "a summary that lags"])
async def test_of_a_session_s_runs_a_turn_is_shown_the_last_that_fit_into_16_mib(
    settings: Settings,
    database: asyncpg.Connection,
    megabytes: list[int],
    shown: list[str],
    limits: tuple[int | None, bool],
) -> None:
    history_runs, summarized = limits
    await store_runs(database, *(size * _MEGABYTE for size in megabytes))
    async with store_of(settings) as store, store.claimed(request_of("next"), history_runs, summarized=summarized) as c:
        assert [run.run_id for run in c.claim.history] == shown


async def test_what_of_a_run_is_not_shown_does_not_count(settings: Settings, database: asyncpg.Connection) -> None:
    await store_runs(database, 1, 1, 1)
    messages = "jsonb_build_object('messages', repeat('x', 9000000))"
    await database.execute(f"update agno_runs set run_data = run_data || {messages}")  # noqa: S608 - a constant
    async with store_of(settings) as store, store.claimed(request_of("next"), None) as claimed:
        assert len(claimed.claim.history) == 3


async def test_a_session_of_more_than_jsonb_can_hold_goes_on(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    @executor("echo", history_runs=None)
    async def echo(turn: Turn) -> int:
        return len(turn.history)

    await store_runs(database, *[12 * _MEGABYTE] * 24)
    async with worker_of(settings, echo):
        reply = await broker.reply(await broker.ask("s1", "q"))
    assert (reply["content"], reply["error"]) == (1, None)


@pytest.mark.new_database
async def test_runs_that_do_not_fit_are_not_unpacked(database: asyncpg.Connection) -> None:
    # Each is stored as it is, in some 1,200 pages: the last one fits, and the one before it is looked at.
    await database.execute("alter table agno_runs alter column run_data set storage external")
    await store_runs(database, *[9 * _MEGABYTE] * 6)
    asked = [{"position": 0, "run_id": "new", "session_id": "s1", "history_runs": None}]
    explained = await database.fetchval(
        "explain (analyze, buffers, format json) select * from claim_turns($1::jsonb)", json.dumps(asked)
    )
    plan = json.loads(explained)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 3 * 1_200


@pytest.mark.parametrize(
    ("megabytes", "read"),
    [
        ([1, 1, 1, 1, 1, 1], (0, 1, 2, 3)),
        ([9, 1, 1], (0,)),
        ([1, 9, 1], (0,)),
        ([1, 1], (0, 1)),
    ],
    ids=["as many as fit", "one at least", "none after one that does not fit", "all that there are"],
)
async def test_of_what_a_summary_lacks_the_first_runs_that_fit_are_read_however_small_they_are_stored(
    settings: Settings, database: asyncpg.Connection, megabytes: list[int], read: tuple[int, ...]
) -> None:
    await store_runs(database, *(size * _MEGABYTE for size in megabytes))
    async with store_of(settings) as store:
        lacking = await store.unsummarized("s1")
    assert lacking is not None
    assert lacking.run_indexes == read
    assert [run.run_id for run in lacking.runs] == [f"r{index}" for index in read]
