"""Pruning and deleting, on rows of every kind, beside turns that run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from schemas.replies import RunReply, RunStatus
from schemas.sessions import Pruned
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.sessions.database import connect
from worker.sessions.editing import Deleted, delete_session, forget_user
from worker.sessions.retention import Old, count_prunable, prune
from worker.settings import Settings

DAY = 86_400
TABLES = ("agno_sessions", "agno_runs", "receipts", "turn_attempts", "turn_steps", "paused_runs", "coalesced_runs")
SECRET = "my aunt's address"


@executor("echo", kind="team")
async def echo(turn: Turn) -> str:
    return turn.input


class Held:
    """An executor whose turn runs until it is let go."""

    def __init__(self) -> None:
        self.running, self.let_go = asyncio.Event(), asyncio.Event()

        @executor("held", kind="team")
        async def held(turn: Turn) -> str:
            self.running.set()
            await self.let_go.wait()
            return turn.input

        self.executor = held


@pytest.fixture
async def pruner(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own: a session's lock is re-entrant within one."""
    connection = await connect(SecretStr(postgres_url), "ai", application="pruner")
    yield connection
    await connection.close()


def older_than(days: int, **chosen: Any) -> Old:
    return Old(int(time.time()) - days * DAY, **chosen)


async def pruned(pruner: asyncpg.Connection, old: Old, *, batch: int = 2) -> Pruned:
    return [gone async for gone in prune(pruner, old, batch=batch)][-1]


async def a_session(
    database: asyncpg.Connection, name: str, *, days: int, user: str | None = None, team: str = "echo", runs: int = 2
) -> None:
    """Store a session as a worker does, whose last turn was so many days ago; of its journal, what a crash left."""
    when = int(time.time()) - days * DAY
    await database.execute(
        """
        insert into agno_sessions (session_id, session_type, team_id, user_id, created_at, updated_at)
        values ($1, 'team', $4, $3, $2 - 1000, $2)
        """,
        *(name, when, user, team),
    )
    for number in range(runs):
        await database.execute(
            """
            with run as (
                insert into agno_runs (run_id, session_id, run_type, status, run_index, run_data, created_at)
                values ($1, $2, 'team', 'COMPLETED', $4, jsonb_build_object('content', $6::text), $3)
                returning run_id, session_id, created_at
            )
            insert into receipts
                (run_id, session_id, user_id, target_type, target_id, fingerprint, status, reply, created_at)
            select run_id, session_id, $5, 'team', $7, '', 'COMPLETED', convert_to($6, 'UTF8'), to_timestamp(created_at)
            from run
            """,
            *(f"{name}-{number}", name, when, number, user, SECRET, team),
        )
    await unfinished(database, f"{name}-begun", days=days, session=name)


async def unfinished(database: asyncpg.Connection, run_id: str, *, days: int, session: str | None = None) -> None:
    """Store what a run leaves that was begun and is never answered."""
    when = time.time() - days * DAY
    await database.execute(
        "insert into turn_attempts (run_id, attempts, started_at, session_id) values ($1, 1, to_timestamp($2), $3)",
        *(run_id, when, session),
    )
    await database.execute(
        """
        insert into turn_steps (run_id, request, key, seq, attempt, state, recorded_at)
        values ($1, 'f', 'k', 1, 1, 'done', to_timestamp($2))
        """,
        *(run_id, when),
    )
    await database.execute(
        "insert into coalesced_runs (answered_by, request, position, run_id, asked) values ($1, 'f', 1, $2, $3)",
        *(run_id, f"{run_id}-2", SECRET.encode()),
    )


async def paused(database: asyncpg.Connection, session: str, *, expires_in_days: int) -> None:
    await database.execute(
        "insert into paused_runs (run_id, session_id, request, pause, expires_at) values ($1, $2, 'p', '{}', $3)",
        *(f"{session}-paused", session),
        await database.fetchval("select now() + make_interval(days => $1)", expires_in_days),
    )
    await database.execute(
        """
        insert into turn_steps (run_id, request, key, seq, attempt, state, recorded_at)
        values ($1, 'p', 'k', 1, 0, 'done', now() - interval '200 days')
        """,
        f"{session}-paused",
    )


async def rows(database: asyncpg.Connection) -> dict[str, int]:
    return {table: await database.fetchval(f"select count(*) from {table}") for table in TABLES}  # noqa: S608 - ours


async def sessions(database: asyncpg.Connection) -> set[str]:
    return {record["session_id"] for record in await database.fetch("select session_id from agno_sessions")}


# --- prune ---


async def test_what_is_old_goes_with_all_that_belongs_to_it(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    for number in range(5):
        await a_session(database, f"old-{number}", days=100)
    await paused(database, "old-0", expires_in_days=-50)
    await a_session(database, "young", days=80)
    before = await rows(database)
    counted = await count_prunable(pruner, older_than(90))
    assert await rows(database) == before
    gone = await pruned(pruner, older_than(90))
    assert await sessions(database) == {"young"}
    assert await rows(database) == dict.fromkeys(TABLES, 1) | {"agno_runs": 2, "receipts": 2, "paused_runs": 0}
    assert (gone.sessions, gone.runs, gone.receipts, gone.held) == (5, 10, 10, 0)
    assert (counted.sessions, counted.runs, counted.receipts) == (5, 10, 10)
    assert counted.bytes == gone.bytes > 10 * 2 * len(SECRET)


async def test_pruning_again_finds_nothing(database: asyncpg.Connection, pruner: asyncpg.Connection) -> None:
    await a_session(database, "old", days=100)
    await pruned(pruner, older_than(90))
    assert await pruned(pruner, older_than(90)) == Pruned()


async def test_it_can_be_interrupted_after_a_batch_and_begun_again(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    for number in range(5):
        await a_session(database, f"old-{number}", days=100)
    batches = prune(pruner, older_than(90), batch=2)
    assert (await anext(batches)).sessions == 2
    await batches.aclose()
    assert len(await sessions(database)) == 3
    assert (await pruned(pruner, older_than(90))).sessions == 3


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({"user_id": "ada"}, {"bob's", "another team's"}),
        ({"target_id": "echo"}, {"another team's"}),
        ({"user_id": "ada", "target_id": "other"}, {"ada's", "bob's", "another team's"}),
    ],
)
async def test_only_what_is_chosen_goes(
    database: asyncpg.Connection, pruner: asyncpg.Connection, chosen: dict[str, str], left: set[str]
) -> None:
    await a_session(database, "ada's", days=100, user="ada")
    await a_session(database, "bob's", days=100, user="bob")
    await a_session(database, "another team's", days=100, user="bob", team="other")
    await unfinished(database, "nobody's", days=100)
    await pruned(pruner, older_than(90, **chosen))
    assert await sessions(database) == left
    assert await database.fetchval("select count(*) from turn_attempts where run_id = 'nobody''s'") == 1


async def test_a_session_that_waits_for_a_decision_stays(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "waits", days=100)
    await paused(database, "waits", expires_in_days=1)
    gone = await pruned(pruner, older_than(90))
    assert (gone.sessions, await sessions(database)) == (0, {"waits"})
    kept = await database.fetchval("select count(*) from turn_steps where run_id = 'waits-paused'")
    assert kept == 1


async def test_a_session_stays_whose_run_was_begun_of_late_and_is_delivered_again(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    """Its worker died: nobody has the lock, and what the run has paid for is in the journal alone."""
    await a_session(database, "old", days=100)
    await unfinished(database, "begun", days=0, session="old")
    counted = await count_prunable(pruner, older_than(90))
    gone = await pruned(pruner, older_than(90))
    assert (counted.sessions, gone.sessions, await sessions(database)) == (0, 0, {"old"})
    assert await database.fetchval("select count(*) from turn_steps where run_id = 'begun'") == 1
    assert await database.fetchval("select count(*) from coalesced_runs where answered_by = 'begun'") == 1


async def test_a_session_stays_a_run_of_which_was_cancelled_of_late(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    """The request can wait in a queue, and would be executed."""
    await a_session(database, "old", days=100)
    await database.execute("insert into cancellations (run_id, session_id) values ('waits', 'old')")
    await pruned(pruner, older_than(90))
    assert await sessions(database) == {"old"}
    assert await database.fetchval("select count(*) from cancellations") == 1


async def test_receipts_without_a_session_go_by_their_age(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    for name, days in (("old", 100), ("young", 10)):
        await a_session(database, name, days=days)
        await database.execute("delete from agno_sessions where session_id = $1", name)
    gone = await pruned(pruner, older_than(90))
    left = await database.fetch("select distinct session_id from receipts")
    assert ([record["session_id"] for record in left], gone.receipts) == (["young"], 2)


async def test_a_session_whose_turn_runs_is_left_alone_and_others_are_not(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    held = Held()
    for name in ("running", "idle"):
        await a_session(database, name, days=100, team="held")
    async with worker_of(settings, held.executor):
        run_id = await broker.ask("running", team_id="held")
        await held.running.wait()
        gone = await pruned(pruner, older_than(90))
        assert (gone.sessions, gone.held, await sessions(database)) == (1, 1, {"running"})
        held.let_go.set()
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["turn"]) == ("COMPLETED", 1)
    assert (await pruned(pruner, older_than(90))).sessions == 0
    assert await database.fetchval("select count(*) from agno_runs where session_id = 'running'") == 3


async def test_a_turn_that_comes_while_its_session_is_pruned_begins_a_new_one(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "old", days=100)
    await pruner.fetchval("select pg_advisory_lock(session_lock_key('old'))")
    async with worker_of(settings, echo):
        run_id = await broker.ask("old")
        await eventually(lambda: is_asked_for(database))
        await pruned(pruner, older_than(90))
        await pruner.execute("select pg_advisory_unlock_all()")
        assert (await broker.reply(run_id))["turn"] == 1
    assert await database.fetchval("select count(*) from agno_runs where session_id = 'old'") == 1


async def is_asked_for(database: asyncpg.Connection) -> bool:
    """Whether a worker has tried to claim a session; it goes on trying."""
    return bool(
        await database.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and query like '%claim_turns%'"
        )
    )


async def test_what_was_never_answered_goes_by_its_age(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await unfinished(database, "old", days=100)
    await unfinished(database, "young", days=10)
    gone = await pruned(pruner, older_than(90))
    assert gone.unfinished == 1
    for table in ("turn_attempts", "turn_steps"):
        assert [record["run_id"] for record in await database.fetch(f"select run_id from {table}")] == ["young"]  # noqa: S608 - ours
    assert await database.fetchval("select array_agg(answered_by) from coalesced_runs") == ["young"]


# --- delete ---


async def test_a_deleted_session_leaves_nothing_that_was_said(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "s", days=1, user="ada")
    await a_session(database, "other", days=1, user="ada")
    await paused(database, "s", expires_in_days=3)
    assert await delete_session(pruner, "s") is Deleted.DELETED
    for table in TABLES:
        column = {"turn_steps": "run_id", "turn_attempts": "run_id", "coalesced_runs": "answered_by"}.get(
            table, "session_id"
        )
        left = await database.fetch(f"select {table}::text as row from {table} where {column} like 's%'")  # noqa: S608 - ours
        assert len(left) == (2 if table == "receipts" else 0), table
        assert not [record for record in left if SECRET in record["row"] or SECRET.encode().hex() in record["row"]]
    assert await database.fetchval("select count(*) from agno_runs") == 2


async def test_what_is_left_in_a_receipt_is_a_reply_without_content(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "s", days=1, user="ada")
    await delete_session(pruner, "s")
    (reply, *_) = [
        RunReply.model_validate_json(record["reply"]) for record in await database.fetch("select reply from receipts")
    ]
    assert (reply.run_id, reply.session_id, reply.team_id, reply.user_id) == ("s-0", "s", "echo", "ada")
    assert (reply.status, reply.content, reply.member_responses) == (RunStatus.ERROR, None, [])
    assert reply.error is not None
    assert reply.error.code == "session_deleted"


async def test_with_its_receipts_nothing_of_a_session_is_left(
    database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "s", days=1)
    await delete_session(pruner, "s", with_receipts=True)
    assert await rows(database) == dict.fromkeys(TABLES, 0)


async def test_of_a_user_also_what_has_no_session_is_emptied(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, pruner: asyncpg.Connection
) -> None:
    await a_session(database, "bob's", days=1, user="bob")
    async with worker_of(settings, echo):
        refused = await broker.ask("bob's", SECRET, user_id="ada")
        assert (await broker.reply(refused))["error"]["code"] == "session_forbidden"
        body = {"type": "cancel", "run_id": "never", "session_id": "s", "user_id": "ada"}
        await broker.publish(body, exchange=f"{settings.prefix}.control", routing_key="")
        await eventually(lambda: database.fetchval("select count(*) = 1 from cancellations"))
    assert await forget_user(pruner, "ada") == 1
    reply = json.loads(await database.fetchval("select reply from receipts where run_id = $1", refused))
    assert (reply["error"]["code"], reply["user_id"]) == ("session_deleted", "ada")
    assert await database.fetchval("select count(*) from cancellations") == 0
    assert await sessions(database) == {"bob's"}
    assert await forget_user(pruner, "ada", with_receipts=True) == 1
    assert await database.fetchval("select count(*) from receipts where user_id = 'ada'") == 0
