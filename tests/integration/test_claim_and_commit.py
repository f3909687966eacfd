"""What Postgres promises a turn: exclusion, what is read under the lock, and what a commit writes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import pytest

from schemas.replies import RunReply, RunStatus
from schemas.requests import RunRequest
from tests.support.waiting import eventually
from tests.unit.examples import context_of
from worker.errors import (
    ClaimOutdated,
    LaneLost,
    SessionBusyElsewhere,
    SessionDeleted,
    StatementRefused,
    StoreUnavailable,
)
from worker.executors.attempt import Outcome, new_turn
from worker.replies.answers import Timing, body_of, finished
from worker.sessions.database import connect
from worker.sessions.store import ClaimedSession, SessionStore
from worker.sessions.stored_runs import FinishedTurn
from worker.settings import Settings


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[SessionStore]:
    store = SessionStore(settings.postgres_url, settings.db_schema)
    await store.open()
    running = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def request_of(run_id: str, session_id: str = "s1", text: str = "hi") -> RunRequest:
    return RunRequest(run_id=run_id, session_id=session_id, team_id="echo", user_id="u1", input=text)


async def commit(claimed: ClaimedSession, content: str = "answer", *, now: float | None = None) -> RunReply:
    """Commit a completed turn with that answer."""
    turn = new_turn(claimed.request, claimed.claim.session, context_of(*claimed.claim.history), attempt=1)
    outcome = Outcome(RunStatus.COMPLETED, content=content, session_state=dict(turn.session_state))
    now = time.time() if now is None else now
    reply = finished(
        claimed.request, turn, outcome, number=claimed.next_turn, timing=Timing(queued=now, started=now, ended=now)
    )
    left = FinishedTurn(name="Echo", model_name="fake:model", session_state=turn.session_state, member_runs=())
    await claimed.commit(reply, body_of(reply), left)
    return reply


async def take(store: SessionStore, run_id: str, session_id: str = "s1", content: str = "answer") -> RunReply:
    async with store.claimed(request_of(run_id, session_id), 3) as claimed:
        return await commit(claimed, content)


async def test_a_session_is_claimed_by_one_worker_at_a_time(settings: Settings, database: asyncpg.Connection) -> None:
    async with store_of(settings) as one, store_of(settings) as other:
        async with one.claimed(request_of("r1"), 3):
            with pytest.raises(SessionBusyElsewhere):
                async with other.claimed(request_of("r2"), 3):
                    pass
            async with other.claimed(request_of("r3", "another session"), 3):
                pass
        await eventually(lambda: _no_session_is_locked(database))
        async with other.claimed(request_of("r2"), 3):
            pass


async def test_a_claim_reads_what_the_holder_before_it_committed(settings: Settings) -> None:
    """A snapshot older than the lock would show an earlier turn_seq, and the commit would be stale."""

    async def turns(store: SessionStore, name: str) -> None:
        done = 0
        while done < 60:
            try:
                async with store.claimed(request_of(f"{name}-{done}"), 1) as claimed:
                    reply = await commit(claimed)
            except SessionBusyElsewhere:
                await asyncio.sleep(0)
                continue
            done += 1
            seen.append(reply.turn or 0)

    seen: list[int] = []
    async with store_of(settings) as one, store_of(settings) as other:
        await asyncio.gather(turns(one, "one"), turns(other, "other"))
    assert sorted(seen) == list(range(1, 121))


async def _no_session_is_locked(database: asyncpg.Connection) -> bool:
    held = await database.fetchval(
        "select count(*) from pg_locks as held join pg_database as of on of.oid = held.database "
        "where held.locktype = 'advisory' and of.datname = current_database()"
    )
    return bool(held == 0)


async def test_a_lost_connection_gives_the_lock_free_and_its_holder_cannot_write(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as one, store_of(settings) as other:
        with pytest.raises(LaneLost):
            async with one.claimed(request_of("r1"), 3) as claimed:
                await database.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name like 'teamturn lane%' and datname = current_database() "
                    "and pid in (select pid from pg_locks where locktype = 'advisory')"
                )
                await eventually(lambda: _no_session_is_locked(database))
                await take(other, "r2")
                await commit(claimed)
        assert await database.fetchval("select array_agg(run_id) from agno_runs") == ["r2"]
        # The lane comes back by itself.
        await eventually(lambda: one.alive)
        assert (await take(one, "r3")).turn == 2


async def test_a_commit_keeps_what_other_programs_wrote(settings: Settings, database: asyncpg.Connection) -> None:
    async with store_of(settings) as store:
        await take(store, "r1")
        async with store.claimed(request_of("r2"), 3) as claimed:
            await database.execute(
                """update agno_sessions set
                   session_data = session_data || '{"session_name": "Renamed", "theirs": 1}',
                   team_data = team_data || '{"theirs": 2}', metadata = '{"theirs": 3}', summary = '{"theirs": 4}'"""
            )
            await commit(claimed)
    row = await database.fetchrow("select * from agno_sessions")
    assert row is not None
    data = json.loads(row["session_data"])
    assert (data["session_name"], data["theirs"]) == ("Renamed", 1)
    assert json.loads(row["team_data"])["theirs"] == 2
    assert json.loads(row["metadata"]) == {"theirs": 3}
    assert json.loads(row["summary"]) == {"theirs": 4}
    assert row["turn_seq"] == 2


async def test_a_session_deleted_during_a_turn_stays_deleted(settings: Settings, database: asyncpg.Connection) -> None:
    async with store_of(settings) as store:
        await take(store, "r1")
        with pytest.raises(SessionDeleted):
            async with store.claimed(request_of("r2"), 3) as claimed:
                await database.execute("delete from agno_sessions")
                await commit(claimed)
    assert await database.fetchval("select count(*) from agno_sessions") == 0
    assert await database.fetchval("select array_agg(run_id) from receipts") == ["r1"]


@pytest.mark.parametrize(
    "meanwhile",
    [
        "update agno_sessions set turn_seq = turn_seq + 1",
        """delete from agno_sessions;
           insert into agno_sessions (session_id, session_type, created_at) values ('s1', 'team', 1)""",
    ],
)
async def test_a_session_written_by_somebody_else_is_claimed_again(
    settings: Settings, database: asyncpg.Connection, meanwhile: str
) -> None:
    async with store_of(settings) as store:
        await take(store, "r1")
        with pytest.raises(ClaimOutdated):
            async with store.claimed(request_of("r2"), 3) as claimed:
                await database.execute(meanwhile)
                await commit(claimed)
    assert "r2" not in await database.fetchval("select array_agg(run_id) from receipts")


async def test_a_session_created_by_somebody_else_during_its_first_turn_is_claimed_again(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        with pytest.raises(ClaimOutdated):
            async with store.claimed(request_of("r1"), 3) as claimed:
                await database.execute(
                    "insert into agno_sessions (session_id, session_type, created_at) values ('s1', 'team', 1)"
                )
                await commit(claimed)
    assert await database.fetchval("select count(*) from receipts") == 0


async def test_one_run_id_in_two_sessions_is_committed_once(settings: Settings) -> None:
    async with store_of(settings) as one, store_of(settings) as other:
        async with one.claimed(request_of("same", "s1"), 3) as first:
            await take(other, "same", "s2")
            with pytest.raises(ClaimOutdated):
                await commit(first)
        async with one.claimed(request_of("same", "s1"), 3) as again:
            assert again.claim.receipt is not None
            assert again.claim.receipt.session_id == "s2"


async def test_a_bad_row_fails_alone_in_its_batch(settings: Settings) -> None:
    async with store_of(settings) as store:
        all_claimed = asyncio.Barrier(20)

        async def turn(number: int) -> int | None:
            async with store.claimed(request_of(f"r{number}", f"s{number}"), 3) as claimed:
                await all_claimed.wait()
                # No bigint holds the second of these times.
                return (await commit(claimed, now=1e30 if number == 7 else None)).turn

        results = await asyncio.gather(*(turn(number) for number in range(20)), return_exceptions=True)
    assert [number for number, result in enumerate(results) if result != 1] == [7]
    assert isinstance(results[7], StatementRefused)


async def test_runs_are_indexed_in_order_and_the_history_is_the_last_completed_ones(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        for number in range(6):
            await take(store, f"r{number}", content=f"a{number}")
        await database.execute("update agno_runs set status = 'ERROR' where run_id = 'r4'")
        async with store.claimed(request_of("next"), 3) as claimed:
            assert [run.content for run in claimed.claim.history] == ["a2", "a3", "a5"]
        async with store.claimed(request_of("next"), None) as claimed:
            assert len(claimed.claim.history) == 5
        async with store.claimed(request_of("next"), 0) as claimed:
            assert claimed.claim.history == ()
    indexes = await database.fetch("select run_id, run_index from agno_runs order by run_index")
    assert [tuple(record) for record in indexes] == [(f"r{number}", number) for number in range(6)]


@pytest.mark.new_database
async def test_the_update_of_a_session_is_a_hot_one(settings: Settings, database: asyncpg.Connection) -> None:
    """With an index on what a turn changes, each turn would write every index of the row."""
    async with store_of(settings) as store:
        for number in range(20):
            await take(store, f"r{number}")
    await database.execute("select pg_stat_force_next_flush()")

    async def counted() -> tuple[int, int]:
        row = await database.fetchrow(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'agno_sessions'"
        )
        assert row is not None
        return row["n_tup_upd"], row["n_tup_hot_upd"]

    async def all_counted() -> bool:
        return (await counted())[0] >= 19

    await eventually(all_counted)
    updated, hot = await counted()
    assert hot == updated


async def test_a_claim_that_failed_leaves_no_lock(settings: Settings, database: asyncpg.Connection) -> None:
    """A session's lock outlives the rollback of the statement that took it."""
    async with store_of(settings) as one, store_of(settings) as other:
        async with database.transaction():
            await database.execute("lock table agno_runs in access exclusive mode")
            with pytest.raises(StoreUnavailable):
                async with one.claimed(request_of("r1"), 3):
                    pass
        async with other.claimed(request_of("r1"), 3):
            pass


@pytest.mark.parametrize("rounds", [1, 2, 3, 20])
async def test_a_claim_that_is_given_up_takes_no_other_claim_s_lock_and_leaves_none(
    settings: Settings, database: asyncpg.Connection, rounds: int
) -> None:
    """It may have run by then, be under way, or never run: a turn that is held beside it goes on alone."""
    async with store_of(settings) as one, store_of(settings) as other:

        async def claim() -> None:
            async with one.claimed(request_of("given up"), 3):
                pass

        async with one.claimed(request_of("r1"), 3) as claimed:
            giving_up = asyncio.create_task(claim())
            for _ in range(rounds):
                await asyncio.sleep(0)
            giving_up.cancel()
            await asyncio.gather(giving_up, return_exceptions=True)
            await claimed.count_attempt()  # what was submitted before it has run
            await claimed.count_attempt()
            with pytest.raises(SessionBusyElsewhere):
                async with other.claimed(request_of("r2"), 3):
                    pass
        await eventually(lambda: _no_session_is_locked(database))


async def test_a_commit_that_is_turned_down_for_the_moment_is_written_later(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        await take(store, "r1")
        async with store.claimed(request_of("r2"), 3) as claimed:
            async with database.transaction():
                await database.execute("select from agno_sessions for update")
                committing = asyncio.create_task(commit(claimed))
                # lock_timeout has turned it down once when the lane waits for nothing any more.
                await eventually(partial(_waits_for_a_row, settings), seconds=10)
                await eventually(partial(_waits_for_no_row, settings), seconds=10)
            assert (await committing).turn == 2


async def _waits_for_a_row(settings: Settings) -> bool:
    looking = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        waiting = await looking.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
    finally:
        await looking.close()
    return bool(waiting)


async def _waits_for_no_row(settings: Settings) -> bool:
    return not await _waits_for_a_row(settings)


async def test_what_other_programs_left_in_odd_shapes_does_not_fail_a_commit(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        await take(store, "r1")
        await database.execute(
            """update agno_sessions set metadata = 'null', team_data = '[1]', session_data =
               '{"session_metrics": {"input_tokens": 1.5, "output_tokens": "many", "cost": 2}, "session_state": 7}'"""
        )
        assert (await take(store, "r2")).turn == 2
    row = await database.fetchrow("select * from agno_sessions")
    assert row is not None
    assert json.loads(row["metadata"] or "null") in (None, {})
    assert json.loads(row["team_data"])["name"] == "Echo"
    metrics = json.loads(row["session_data"])["session_metrics"]
    assert (metrics["input_tokens"], metrics["output_tokens"], metrics["cost"]) == (1, 0, 2)


async def test_a_worker_of_before_the_last_migration_is_served_as_before(
    settings: Settings, database: asyncpg.Connection
) -> None:
    """While an upgrade is rolled out: it asks for no summaries, and calls what a turn used its tokens."""
    async with store_of(settings) as store:
        for number in range(5):
            await take(store, f"r{number}")
    await eventually(lambda: _no_session_is_locked(database))
    asked = [{"position": 0, "run_id": "new", "session_id": "s1", "history_runs": 2}]
    claim = await database.fetchrow("select turn_seq, history from claim_turns($1::jsonb)", json.dumps(asked))
    assert claim is not None
    assert [run["run_id"] for run in json.loads(claim["history"])] == ["r3", "r4"]
    target = {"session_id": "s1", "target_type": "team", "target_id": "echo", "fingerprint": "00"}
    turn = {
        "position": 1,
        "turn_seq": claim["turn_seq"],
        "session": {
            "session_id": "s1",
            "session_type": "team",
            "team_id": "echo",
            "metadata": {},
            "started": 1,
            "ended": 1,
            "tokens": {"input_tokens": 7},
        },
        "runs": [{"type": "team", "data": {"run_id": "new", "created_at": 1}}],
        "receipt": {"run_id": "new", "status": "COMPLETED", **target},
    }
    outcome = await database.fetchval(
        "select outcome from commit_turns($1::jsonb, $2::bytea[])", json.dumps([turn]), [b"{}"]
    )
    assert outcome == "committed"
    metrics = "session_data -> 'session_metrics' -> 'input_tokens'"
    assert await database.fetchval(f"select {metrics} from agno_sessions") == "7"  # noqa: S608 - a constant


@pytest.mark.parametrize("odd", ["null", "[]", '[{"run_id": 1}]', '"text"', "5", "{}"])
async def test_a_stored_run_that_is_no_object_is_an_empty_one_of_the_history(
    settings: Settings, database: asyncpg.Connection, odd: str
) -> None:
    async with store_of(settings) as store:
        for run_id in ("r0", "r1"):
            await take(store, run_id)
        await database.execute("update agno_runs set run_data = $1::jsonb where run_id = 'r0'", odd)
        async with store.claimed(request_of("next"), 3) as claimed:
            assert [(run.run_id, run.content) for run in claimed.claim.history] == [("", None), ("r1", "answer")]


_READS = {
    "claim_turns": "select * from claim_turns($1::jsonb)",
    "runs_to_summarize": "select * from runs_to_summarize($1::jsonb, 20, 40, 1000000)",
}


@pytest.mark.new_database
@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize(
    ("read", "summarized"), [("claim_turns", False), ("claim_turns", True), ("runs_to_summarize", True)]
)
async def test_runs_without_an_answer_are_not_passed_over_one_by_one(
    settings: Settings, database: asyncpg.Connection, read: str, *, summarized: bool, analyzed: bool
) -> None:
    asked = {"position": 0, "run_id": "new", "session_id": "s1", "history_runs": 3, "summarized": summarized}
    async with store_of(settings) as store:
        for number in range(3):
            await take(store, f"r{number}")
    await database.execute(
        """insert into agno_runs (run_id, session_id, run_type, status, run_index, run_data, created_at)
           select 'failed' || n, 's1', 'team', 'ERROR', n, '{}', 1 from generate_series(3, 5000) as n"""
    )
    if analyzed:
        await database.execute("analyze")
    # What is read of the catalog is read once.
    pages = [await _pages_read(database, _READS[read], json.dumps([asked])) for _ in range(2)]
    assert pages[-1] < 50


async def _pages_read(database: asyncpg.Connection, statement: str, argument: str) -> int:
    explained = await database.fetchval(f"explain (analyze, buffers, format json) {statement}", argument)
    plan = json.loads(explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.usefixtures("database")
async def test_lanes_do_not_have_their_statements_compiled(settings: Settings) -> None:
    lane = await connect(settings.postgres_url, settings.db_schema, application="lane", lane=True)
    assert await lane.fetchval("show jit") == "off"
    await lane.close()
