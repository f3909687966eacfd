"""Reopening a run that is stored as ERROR: what becomes of it, and what its next attempt finds."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from schemas.replies import RunReply, RunStatus
from schemas.requests import RunRequest
from tests.integration.test_claim_and_commit import store_of
from tests.support.waiting import eventually
from tests.unit.examples import agent, context_of
from worker.errors import ExecutorFailed
from worker.executors.attempt import Outcome as TurnOutcome
from worker.executors.attempt import failed, new_turn
from worker.executors.turn import MemberRun, StepResult
from worker.replies.answers import Timing, body_of, finished
from worker.sessions.database import connect
from worker.sessions.reopening import Outcome, Reopening, reopen
from worker.sessions.store import SessionStore
from worker.sessions.stored_runs import FinishedTurn
from worker.settings import Settings

LONG_ID = "long " + "é" * 125


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[SessionStore]:
    async with store_of(settings) as store:
        yield store


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the one that reopens."""
    connection = await connect(SecretStr(postgres_url), "ai", application="other")
    yield connection
    await connection.close()


def request_of(run_id: str = "r1", session_id: str = "s1", **fields: Any) -> RunRequest:
    fields = {"team_id": "echo", "user_id": "u1", "input": "hi"} | fields
    return RunRequest(run_id=run_id, session_id=session_id, **fields)


def member_run(run_id: str, parent_run_id: str) -> MemberRun:
    return MemberRun(
        run_id, parent_run_id, agent("helper"), "helper", "do", int(time.time()), "done", RunStatus.COMPLETED
    )


async def commit(
    store: SessionStore,
    request: RunRequest,
    *members: MemberRun,
    status: RunStatus = RunStatus.ERROR,
    attempt: int = 1,
    steps: tuple[StepResult, ...] = (),
) -> RunReply:
    """Store a run of that status; if nothing else is said, one that failed."""
    async with store.claimed(request, 3) as claimed:
        turn = new_turn(request, claimed.claim.session, context_of(*claimed.claim.history), attempt=attempt)
        outcome = (
            TurnOutcome(status, content="answer", session_state={})
            if status is RunStatus.COMPLETED
            else failed(ExecutorFailed("it broke"))
        )
        timing = Timing(queued=time.time(), started=time.time(), ended=time.time())
        reply = finished(request, turn, outcome, number=claimed.next_turn, timing=timing)
        left = FinishedTurn("Echo", None, {}, member_runs=members, step_results=steps)
        await claimed.commit(reply, body_of(reply), left)
    await eventually(lambda: store.lock_budget._held == 0)  # unlocked: a statement after the commit
    return reply


async def runs(database: asyncpg.Connection) -> dict[str, dict[str, Any]]:
    """The stored runs by their ids; column and document must say the same."""
    found = {}
    for row in await database.fetch("select run_id, status, parent_run_id, run_data from agno_runs"):
        data = json.loads(row["run_data"])
        document = (data["run_id"], data["status"], data.get("parent_run_id"))
        assert document == (row["run_id"], row["status"], row["parent_run_id"])
        found[row["run_id"]] = data
    return found


async def test_a_failed_run_becomes_history_under_another_id(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of(), attempt=3)
    assert await reopen(database, request_of()) == Reopening(Outcome.REOPENED, 4, session_exists=True)
    (stored,) = (await runs(database)).values()
    assert (stored["run_id"], stored["status"], stored["error"]["code"]) == ("r1~3", "REGENERATED", "executor_failed")


async def test_its_request_then_finds_nothing_and_is_the_session_s_next_turn(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    await commit(store, request_of(), attempt=3)
    await commit(store, request_of("r2"), status=RunStatus.COMPLETED)
    await reopen(database, request_of())
    async with store.claimed(request_of(), None) as claimed:
        assert (claimed.claim.receipt, claimed.claim.run_exists, claimed.next_turn) == (None, False, 3)
        assert [run.run_id for run in claimed.claim.history] == ["r2"]
        assert await claimed.count_attempt() == 4


async def test_the_runs_of_members_and_of_their_members_follow(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    await commit(store, request_of(), member_run("inner", "member"), member_run("member", "r1"))
    await commit(store, request_of("r2"), member_run("another", "r2"), status=RunStatus.COMPLETED)
    await reopen(database, request_of())
    parents = {run_id: run.get("parent_run_id") for run_id, run in (await runs(database)).items()}
    assert parents == {"inner~1": "member~1", "member~1": "r1~1", "r1~1": None, "another": "r2", "r2": None}


async def test_a_member_s_run_keeps_its_status(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of(), member_run("member", "r1"))
    await reopen(database, request_of())
    assert (await runs(database))["member~1"]["status"] == "COMPLETED"


async def test_a_workflow_s_steps_name_the_runs_as_they_are_called_now(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    request = request_of(team_id=None, workflow_id="w1")
    steps = tuple(
        StepResult(name, "agent", "helper", RunStatus.COMPLETED, "done", run_id)
        for name, run_id in (("one", "member"), ("two", None))
    )
    await commit(store, request, member_run("member", "r1"), steps=steps)
    await reopen(database, request)
    results = (await runs(database))["r1~1"]["step_results"]
    assert [(step["step_name"], step["step_run_id"]) for step in results] == [("one", "member~1"), ("two", None)]


async def test_a_run_can_be_reopened_again_and_again(store: SessionStore, database: asyncpg.Connection) -> None:
    for attempt in (1, 2, 3):
        await commit(store, request_of(), attempt=attempt)
        assert (await reopen(database, request_of())).attempt == attempt + 1
    assert sorted(await runs(database)) == ["r1~1", "r1~2", "r1~3"]


async def test_an_id_that_is_taken_is_passed_over(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of("r1~1", "somebody else's"))
    await commit(store, request_of())
    await reopen(database, request_of())
    assert sorted(await runs(database)) == ["r1~1", "r1~2"]


async def test_of_a_long_id_its_hash_is_kept(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of(LONG_ID))
    await reopen(database, request_of(LONG_ID))
    (run_id,) = await runs(database)
    assert len(run_id.encode()) <= 255
    assert run_id.endswith("~1")


@pytest.mark.parametrize(
    "asked",
    [
        request_of(session_id="s2"),
        request_of(user_id="u2"),
        request_of(user_id=None),
        request_of(team_id="other"),
        request_of(team_id=None, agent_id="echo"),
        request_of(input="something else"),
    ],
    ids=["session", "user", "nobody's", "team", "kind of target", "input"],
)
async def test_another_request_of_that_run_id_does_not_reopen_it(
    store: SessionStore, database: asyncpg.Connection, asked: RunRequest
) -> None:
    await commit(store, request_of())
    assert (await reopen(database, asked)).outcome is Outcome.FOREIGN
    assert list(await runs(database)) == ["r1"]


async def test_a_completed_run_is_not_reopened(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of(), status=RunStatus.COMPLETED)
    assert (await reopen(database, request_of())).outcome is Outcome.ANSWERED
    assert list(await runs(database)) == ["r1"]


async def test_of_a_run_that_is_not_stored_there_is_nothing_to_reopen(database: asyncpg.Connection) -> None:
    assert (await reopen(database, request_of())).outcome is Outcome.UNKNOWN


async def test_a_run_whose_receipt_is_gone_is_known_by_whose_it_is(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    await commit(store, request_of())
    await database.execute("delete from receipts")
    assert (await reopen(database, request_of(user_id="u2"))).outcome is Outcome.FOREIGN
    assert (await reopen(database, request_of())).outcome is Outcome.REOPENED


async def test_a_session_whose_turn_is_being_executed_is_left_alone(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    await commit(store, request_of())
    async with store.claimed(request_of("r2"), 3):
        assert (await reopen(database, request_of())).outcome is Outcome.BUSY
    assert list(await runs(database)) == ["r1"]


async def test_a_run_of_a_deleted_session_begins_it_anew(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of())
    await database.execute("delete from agno_sessions")
    assert await reopen(database, request_of()) == Reopening(Outcome.REOPENED, 2, session_exists=False)
    async with store.claimed(request_of(), 3) as claimed:
        assert (claimed.claim.receipt, claimed.next_turn) == (None, 1)


@pytest.mark.parametrize("only_look", [True, False])
async def test_the_session_is_unlocked_afterwards(
    store: SessionStore, database: asyncpg.Connection, other: asyncpg.Connection, *, only_look: bool
) -> None:
    await commit(store, request_of())
    await reopen(database, request_of(), only_look=only_look)
    assert await other.fetchval("select pg_try_advisory_lock(session_lock_key('s1'))")


async def test_a_look_changes_nothing(store: SessionStore, database: asyncpg.Connection) -> None:
    await commit(store, request_of())
    assert (await reopen(database, request_of(), only_look=True)).outcome is Outcome.REOPENED
    assert list(await runs(database)) == ["r1"]
    assert await database.fetchval("select count(*) from receipts") == 1
    assert await database.fetchval("select count(*) from turn_attempts") == 0
