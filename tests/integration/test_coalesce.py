"""Requests that wait together become one turn (`on_busy: coalesce`)."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue, SecretStr

from schemas.events import RunEvent
from schemas.requests import RunRequest
from tests.support.broker import TestBroker
from tests.support.fleet import Gate
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.broker import connected
from worker.client import RunClient
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.intake.topology import Topology, apply
from worker.sessions.database import connect
from worker.sessions.statements import Cancellation
from worker.sessions.store import LANES
from worker.settings import Settings
from worker.turns.running import Run
from worker.worker import Worker


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[RunClient]:
    async with connected(settings.amqp_url, name="test") as amqp:
        await apply(amqp.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))
    async with RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client:
        yield client


async def _started(broker: TestBroker, started: asyncio.Event) -> None:
    """Have a run of session s1 that is being executed."""
    await broker.ask("s1", "first", team_id="gate", user_id="u1")
    await started.wait()


async def _busy(broker: TestBroker, gate: Gate) -> str:
    """A run of session s1 that is being executed."""
    run_id = await broker.ask("s1", "first", team_id="gate", user_id="u1", on_busy="coalesce")
    await eventually(lambda: run_id in gate.started)
    return run_id


async def _waiting(broker: TestBroker, worker: Worker, *texts: str, **fields: Any) -> list[str]:
    """Requests that have come to session s1 behind it."""
    asked = {"team_id": "gate", "user_id": "u1", "on_busy": "coalesce"} | fields
    before = len(worker.mailboxes)
    run_ids = [await broker.ask("s1", text, **asked) for text in texts]
    await eventually(lambda: len(worker.mailboxes) == before + len(texts))
    return run_ids


async def _run(database: asyncpg.Connection, run_id: str) -> dict[str, Any]:
    return dict(json.loads(await database.fetchval("select run_data from ai.agno_runs where run_id = $1", run_id)))


async def test_those_that_wait_together_become_one_turn_and_each_has_its_reply(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        first = await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "one", "two", "three")
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in [first, *run_ids]]
        after = await broker.reply(await broker.ask("s1", team_id="gate", user_id="u1"))
    assert gate.started[:2] == [first, run_ids[0]]
    assert len(gate.started) == 3
    assert [reply["content"] for reply in replies] == ["first", *["one\ntwo\nthree"] * 3]
    assert [reply.get("answered_by") for reply in replies] == [None, None, run_ids[0], run_ids[0]]
    assert [reply["turn"] for reply in replies] == [1, 2, 2, 2]
    assert [reply["run_id"] for reply in replies] == [first, *run_ids]
    assert after["turn"] == 3
    stored = await _run(database, run_ids[0])
    assert (stored["input"]["input_content"], stored["answers"]) == ("one\ntwo\nthree", run_ids[1:])
    assert await database.fetchval("select count(*) from ai.agno_runs") == 3
    assert await database.fetchval("select count(*) from ai.coalesced_runs") == 0
    # In their order, as ever.
    assert [one.message_id for one in broker.replies[:4]] == [first, *run_ids]


async def test_states_and_metadata_and_parts_are_laid_together_in_their_order(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    started, first, seen = asyncio.Event(), asyncio.Event(), list[Any]()

    @executor("gate")
    async def look(turn: Turn) -> JsonValue:
        started.set()
        await first.wait()
        seen.append((turn.parts, turn.input, dict(turn.session_state), dict(turn.metadata)))
        return None

    part = {"type": "binary", "media_type": "image/png", "data": "aGk="}
    asked: dict[str, Any] = {"team_id": "gate", "user_id": "u1", "on_busy": "coalesce"}
    async with worker_of(settings, look) as worker:
        await _started(broker, started)
        more: list[dict[str, Any]] = [
            {"session_state": {"a": 1, "b": 1}, "metadata": {"m": 1}},
            {"session_state": {"b": 2}},
        ]
        run_ids = [await broker.ask("s1", f"text {n}", **asked, **fields) for n, fields in enumerate(more)]
        run_id = run_ids[0]
        body = {"run_id": "parts", "session_id": "s1", "input": [part], "metadata": {"m": 2, "n": 3}}
        await broker.publish(body | asked)
        await eventually(lambda: len(worker.mailboxes) == 4)
        first.set()
        await broker.reply("parts")
    parts, text, state, metadata = seen[1]
    assert [one.type for one in parts] == ["text", "text", "binary"]
    assert text == "text 0\ntext 1"
    assert (state, metadata) == ({"a": 1, "b": 2}, {"m": 2, "n": 3})
    stored = await database.fetchrow("select session_data, metadata from ai.agno_sessions")
    assert stored is not None
    assert json.loads(stored["session_data"])["session_state"] == {"a": 1, "b": 2}
    assert json.loads(stored["metadata"]) == {"m": 2, "n": 3}
    assert (await _run(database, run_id))["metadata"] == {"m": 2, "n": 3}


@pytest.mark.parametrize(
    "other",
    [{"user_id": "u2"}, {"team_id": "other"}, {"stream": True}, {"on_busy": "enqueue"}],
    ids=lambda other: next(iter(other)),
)
async def test_one_that_asks_for_something_else_does_not_join_nor_do_those_behind_it(
    settings: Settings, broker: TestBroker, other: dict[str, Any]
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "one", "two")
        run_ids += await _waiting(broker, worker, "else", **other)
        run_ids += await _waiting(broker, worker, "three", "four")
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply.get("answered_by") for reply in replies] == [None, run_ids[0], None, None, run_ids[3]]
    assert [reply["content"] for reply in replies][3:] == ["three\nfour"] * 2


async def test_the_same_request_twice_is_one_of_them_once(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await _busy(broker, gate)
        await _waiting(broker, worker, "one", run_id="r1")
        await _waiting(broker, worker, "two", run_id="r2")
        await _waiting(broker, worker, "one", run_id="r1")
        await _waiting(broker, worker, "two", run_id="r2")
        gate.open.set()
        await eventually(lambda: not len(worker.mailboxes))
        replies = [await broker.reply(run_id) for run_id in ("r1", "r2")]
    assert [reply["content"] for reply in replies] == ["one\ntwo"] * 2
    assert len(gate.started) == 2


async def test_one_that_was_cancelled_while_it_waited_is_left_out(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "one", "two", "three")
        await client.cancel(run_ids[1], session_id="s1", user_id="u1")
        await eventually(lambda: _count(database, "cancellations", 1))
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["status"] for reply in replies] == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert [reply["content"] for reply in replies] == ["one\nthree", None, "one\nthree"]


async def _count(database: asyncpg.Connection, table: str, number: int) -> bool:
    return bool(await database.fetchval(f"select count(*) from ai.{table}") == number)  # noqa: S608 - a name of ours


async def test_whoever_cancels_one_of_them_cancels_the_turn_for_all(
    settings: Settings, broker: TestBroker, client: RunClient, database: asyncpg.Connection
) -> None:
    started, first, held = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @executor("gate")
    async def two_steps(turn: Turn) -> JsonValue:
        if turn.input == "first":
            started.set()
            await first.wait()
            return None
        held.set()
        await asyncio.Event().wait()
        return None

    async with worker_of(settings, two_steps) as worker:
        await _started(broker, started)
        run_ids = await _waiting(broker, worker, "one", "two", "three")
        first.set()
        await held.wait()
        await client.cancel(run_ids[2], session_id="s1", user_id="u1")
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["status"] for reply in replies] == ["CANCELLED"] * 3
    assert [reply["turn"] for reply in replies] == [2] * 3
    assert await _count(database, "cancellations", 0)


async def test_a_turn_that_fails_fails_for_all_and_its_numbers_are_told_once(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()

    @executor("gate")
    async def failing(turn: Turn) -> JsonValue:
        gate.started.append(turn.run_id)
        await gate.open.wait()
        turn.usage.input_tokens = 7
        raise ValueError

    async with worker_of(settings, failing) as worker:
        await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "one", "two")
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["error"]["code"] for reply in replies] == ["executor_failed"] * 2
    assert [reply["metrics"]["input_tokens"] for reply in replies] == [7, 0]


async def test_a_turn_that_is_taken_again_is_taken_for_the_same_requests(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    started, first, reached = asyncio.Event(), asyncio.Event(), asyncio.Event()
    turns: list[tuple[str, int]] = []
    made: list[str] = []

    @executor("gate")
    async def paid(turn: Turn) -> JsonValue:
        turns.append((turn.input, turn.attempt))
        if turn.input == "first":
            started.set()
            await first.wait()
            return None
        await turn.step("paid", lambda: made.append(turn.input))
        if turn.attempt == 1 and turn.input != "late":
            reached.set()
            await asyncio.Event().wait()
        return turn.input

    async with worker_of(settings, paid) as worker:
        await _started(broker, started)
        run_ids = await _waiting(broker, worker, "one", "two")
        first.set()
        await reached.wait()
        assert await _count(database, "coalesced_runs", 1)
        run_ids += await _waiting(broker, worker, "late")
    async with worker_of(settings, paid):
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert turns[1:] == [("one\ntwo", 1), ("one\ntwo", 2), ("late", 1)]
    assert made == ["one\ntwo", "late"], "the recorded step is not made again"
    assert [reply["content"] for reply in replies] == ["one\ntwo", "one\ntwo", "late"]
    assert [reply.get("answered_by") for reply in replies] == [None, run_ids[0], None]
    assert await _count(database, "coalesced_runs", 0)


async def test_one_that_was_begun_before_keeps_a_turn_of_its_own_and_so_do_those_behind_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "one", "two", "three")
        started = "insert into ai.turn_attempts (run_id, attempts, session_id) values ($1, 1, 's1')"
        await database.execute(started, run_ids[1])
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply.get("answered_by") for reply in replies] == [None] * 3


async def test_who_watches_one_of_them_is_told_where_it_went_and_how_it_ended(
    settings: Settings, broker: TestBroker, client: RunClient
) -> None:
    gate = Gate()

    def asked(run_id: str) -> RunRequest:
        given = {"run_id": run_id, "session_id": "s1", "team_id": "gate", "input": run_id, "on_busy": "coalesce"}
        return RunRequest.model_validate(given)

    async def events_of(run_id: str) -> list[RunEvent]:
        return [event async for event in client.stream(asked(run_id), timeout_seconds=20)]

    async with worker_of(settings, gate.executor) as worker:
        await broker.ask("s1", "first", team_id="gate")
        await eventually(lambda: len(gate.started) == 1)
        watching = []
        for number, run_id in enumerate(("r1", "r2"), start=2):
            watching.append(asyncio.create_task(events_of(run_id)))
            await eventually(lambda number=number: len(worker.mailboxes) == number)  # type: ignore[misc]
        gate.open.set()
        one, two = await asyncio.gather(*watching)
    assert [event.type for event in one] == ["run_started", "run_finished"]
    assert [event.type for event in two] == ["run_joined", "run_finished"]
    joined, finished = two
    assert joined.type == "run_joined"
    assert joined.answered_by == "r1"
    assert finished.type == "run_finished"
    assert (finished.reply.run_id, finished.reply.content) == ("r2", "r1\nr2")
    assert (joined.attempt, joined.number) < (finished.attempt, finished.number)


async def test_an_answer_to_many_is_stored_within_the_limit_of_one(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.turns.ending.LARGEST_RESULT_BYTES", 300_000)
    started, first = asyncio.Event(), asyncio.Event()

    @executor("gate")
    async def long(_: Turn) -> JsonValue:
        started.set()
        await first.wait()
        return "x" * 200_000

    async with worker_of(settings, long) as worker:
        await _started(broker, started)
        run_ids = await _waiting(broker, worker, "one", "two", "three")
        first.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [len(reply["content"] or "") for reply in replies] == [200_000, 0, 0]
    assert [reply["error"] and reply["error"]["code"] for reply in replies] == [None] + ["reply_too_large"] * 2
    assert f"run {run_ids[0]}" in replies[1]["error"]["message"]


async def test_no_more_join_than_the_limit_says(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.turns.coalescing.MOST_JOINED", 2)
    monkeypatch.setattr("worker.turns.coalescing.MOST_BYTES", 1000)
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await _busy(broker, gate)
        run_ids = await _waiting(broker, worker, "1", "2", "3", "4", "5" * 900, "6")
        gate.open.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["content"] for reply in replies] == ["1\n2\n3"] * 3 + ["4"] + [f"{'5' * 900}\n6"] * 2


async def test_a_session_that_is_deleted_meanwhile_is_so_for_all(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    started, first, reached, second = (asyncio.Event() for _ in range(4))

    @executor("gate")
    async def gate(turn: Turn) -> JsonValue:
        started.set()
        await first.wait()
        if turn.input != "first":
            reached.set()
            await second.wait()
        return None

    async with worker_of(settings, gate) as worker:
        await _started(broker, started)
        run_ids = await _waiting(broker, worker, "one", "two")
        first.set()
        await reached.wait()
        await database.execute("delete from ai.agno_sessions")
        second.set()
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["error"]["code"] for reply in replies] == ["session_deleted"] * 2
    assert await _count(database, "coalesced_runs", 0)


async def test_one_that_is_cancelled_as_it_would_join_cancels_no_turn_but_its_own(
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[frozenset[Cancellation]] = []

    def tell(run: Run, said: frozenset[Cancellation]) -> None:
        told.append(said)
        original(run, said)

    original = Run.tell
    monkeypatch.setattr(Run, "tell", tell)
    gate = Gate()
    # Not one of the lane that asks who was cancelled: its own waits meanwhile.
    session_id = next(name for name in map(str, range(100)) if zlib.crc32(name.encode()) % LANES == 1)
    asked: dict[str, Any] = {"session_id": session_id, "team_id": "gate", "user_id": "u1", "on_busy": "coalesce"}
    one, two, three = [asked | {"run_id": run_id, "input": run_id} for run_id in ("one", "two", "three")]
    async with worker_of(settings, gate.executor) as worker, _other_connection(postgres_url) as other:
        await broker.publish(asked | {"run_id": "first", "input": "first"})
        await eventually(lambda: gate.started == ["first"])
        for request in (one, two, three):
            await broker.publish(request)
        await eventually(lambda: len(worker.mailboxes) == 4)
        # The second is held up as it is stored that it joins, and before the third is looked at.
        blocking = database.transaction()
        await blocking.start()
        joins = "insert into ai.coalesced_runs (answered_by, request, position, run_id, asked)"
        await database.execute(f"{joins} values ('one', $1, 1, '', '')", RunRequest.model_validate(one).fingerprint)
        gate.open.set()
        await eventually(lambda: other.fetchval("select count(*) from pg_locks where not granted"))
        await other.execute(
            "insert into ai.cancellations (run_id, session_id, user_id) values ('three', $1, 'u1')", session_id
        )
        await other.execute("select pg_notify('teamturn_cancelled', '')")
        await eventually(lambda: any(told))
        await blocking.rollback()
        replies = [await broker.reply(run_id) for run_id in ("one", "two", "three")]
    assert [reply["status"] for reply in replies] == ["COMPLETED", "COMPLETED", "CANCELLED"]
    assert [reply["content"] for reply in replies] == ["one\ntwo", "one\ntwo", None]


@asynccontextmanager
async def _other_connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(SecretStr(postgres_url), "ai", application="test")
    yield connection
    await connection.close()
