"""A lost lane: everybody who waits is told, and nobody writes through it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

import sql
from tests.support.waiting import eventually
from tests.unit.examples import everything_that_can_run
from tests.unit.lane_connections import ECHO, FakePostgres, running, settled, statement
from worker.errors import LaneLost, StartupError, StoreUnavailable
from worker.sessions import lanes
from worker.sessions.lanes import Lane, LaneConnection


def _submit(lane: LaneConnection, *rows: str) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(lane.submit(ECHO, row)) for row in rows]


@pytest.mark.parametrize("lose", [FakePostgres.die, None], ids=["connection dies", "abandoned"])
async def test_who_waits_and_whose_statement_is_under_way_are_told_the_lane_is_lost(
    lose: Callable[[FakePostgres], None] | None,
) -> None:
    postgres = FakePostgres()
    postgres.hold()
    async with running(postgres) as lane:
        under_way = _submit(lane, "a", "b")
        await eventually(lambda: postgres.under_way == 1)
        waiting = [*_submit(lane, "c"), asyncio.create_task(lane.submit(statement("other"), "x"))]
        await everything_that_can_run()
        if lose is None:
            lane.abandon("an unlock failed")
        else:
            lose(postgres)
        results = await settled(*under_way, *waiting)
        assert all(isinstance(result, LaneLost) for result in results)
        with pytest.raises(LaneLost):
            await lane.submit(ECHO, "later")


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("connection was closed"),
        asyncpg.InterfaceError("connection is closed"),
        ConnectionResetError("reset by peer"),
        OSError("no route to host"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_the_connection_loses_the_lane_and_ends_it(error: Exception) -> None:
    postgres = FakePostgres()

    def before(_: str, __: list[str]) -> None:
        if isinstance(error, asyncpg.PostgresConnectionError):
            postgres.closed = True
        raise error

    postgres.before = before
    lane = LaneConnection(cast("asyncpg.Connection", postgres))
    run = asyncio.create_task(lane.run())
    results = await settled(*_submit(lane, "a", "b"))
    assert all(isinstance(result, LaneLost) for result in results)
    async with asyncio.timeout(5):
        await run
    assert postgres.closed, "the connection is closed, and with it go its locks"


async def test_a_connection_that_dies_while_idle_is_noticed_by_the_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_PING_SECONDS", 0.01)
    postgres = FakePostgres()
    lane = LaneConnection(cast("asyncpg.Connection", postgres))
    run = asyncio.create_task(lane.run())
    await everything_that_can_run()
    postgres.die()
    async with asyncio.timeout(5):
        await run
    with pytest.raises(LaneLost):
        await lane.submit(ECHO, "a")


async def test_a_connection_that_can_not_write_any_more_is_lost_before_a_turn_meets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "_PING_SECONDS", 0.01)
    postgres = FakePostgres()
    lane = LaneConnection(cast("asyncpg.Connection", postgres))
    run = asyncio.create_task(lane.run())
    await eventually(lambda: postgres.texts.count(sql.PING) >= 2)
    postgres.read_only = True
    async with asyncio.timeout(5):
        await run
    with pytest.raises(LaneLost, match="takes no writes"):
        await lane.submit(ECHO, "a")


async def test_an_idle_lane_that_is_abandoned_ends_at_once() -> None:
    postgres = FakePostgres()
    lane = LaneConnection(cast("asyncpg.Connection", postgres))
    run = asyncio.create_task(lane.run())
    await everything_that_can_run()
    lane.abandon("an unlock failed")
    async with asyncio.timeout(1):
        await run
    assert postgres.closed
    with pytest.raises(LaneLost, match="an unlock failed"):
        await lane.submit(ECHO, "a")


async def test_a_lane_that_is_cancelled_closes_its_connection_and_answers_everybody() -> None:
    postgres = FakePostgres()
    postgres.hold()
    async with running(postgres) as lane:
        under_way = _submit(lane, "a", "b")
        await eventually(lambda: postgres.under_way == 1)
        waiting = _submit(lane, "c")
        await everything_that_can_run()
    assert postgres.closed
    results = await settled(*under_way, *waiting)
    assert all(isinstance(result, LaneLost) for result in results)


@given(count=st.integers(1, 16), bad=st.sets(st.integers(0, 15)), dies_at=st.integers(1, 12))
@example(count=2, bad={0}, dies_at=2)
async def test_whenever_the_connection_dies_every_caller_is_answered(count: int, bad: set[int], dies_at: int) -> None:
    """Also in the middle of halving a batch: a server that shuts down refuses a batch first and is gone then."""
    rows = [f"row {number}" for number in range(count)]
    bad_rows = {rows[number] for number in bad if number < count}
    statements = 0
    postgres = FakePostgres()

    def before(_: str, given: list[str]) -> None:
        nonlocal statements
        statements += 1
        if statements >= dies_at:
            postgres.die()
            raise asyncpg.ConnectionDoesNotExistError("gone")
        if bad_rows & set(given):
            raise asyncpg.AdminShutdownError("terminating connection due to administrator command")

    postgres.before = before
    async with running(postgres) as lane:
        results = await settled(*_submit(lane, *rows), seconds=1)
    for row, result in zip(rows, results, strict=True):
        assert result == f"{row}!" or isinstance(result, StoreUnavailable)


class _Server:
    """Postgres as a lane connects to it: the connections it gave, or the errors it answers with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[FakePostgres] = []
        self.errors: list[Exception] = []
        self.lanes: list[bool] = []
        monkeypatch.setattr(lanes, "connect", self._connect)
        monkeypatch.setattr(lanes, "_RECONNECT_SECONDS", (0.0,))

    async def _connect(self, *_: Any, application: str, lane: bool = False) -> FakePostgres:
        assert application.startswith("teamturn lane 1 ")
        self.lanes.append(lane)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.given.append(FakePostgres())
        return self.given[-1]


def _lane() -> Lane:
    return Lane(SecretStr("postgresql://unused"), "ai", 1)


async def test_a_lane_that_is_lost_gets_a_new_connection_however_often_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, lane = _Server(monkeypatch), _lane()
    await lane.open()
    run = asyncio.create_task(lane.run())
    first = lane.connection()
    assert await first.submit(ECHO, "a") == "a!"
    server.errors = [StoreUnavailable("starting up"), StartupError("password refused"), OSError("no route")]
    server.given[0].die()
    first.abandon("lost")
    await eventually(lambda: lane.alive and lane.connection() is not first)
    assert await lane.connection().submit(ECHO, "b") == "b!"
    assert len(server.given) == 2
    assert all(server.lanes), "each with a lane's limits"
    with pytest.raises(LaneLost):
        await first.submit(ECHO, "c")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not lane.alive


async def test_a_lane_without_a_connection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    server, lane = _Server(monkeypatch), _lane()
    server.errors = [StoreUnavailable("starting up")]
    with pytest.raises(StoreUnavailable, match="starting up"):
        await lane.open()
    assert not lane.alive
    with pytest.raises(StoreUnavailable):
        lane.connection()


async def test_a_connection_that_was_alive_a_moment_ago_is_not_asked_whether_it_is() -> None:
    postgres = FakePostgres()
    async with running(postgres) as lane:
        await lane.submit(ECHO, "a")
        asked = len(postgres.texts)
        await lane.prove_alive()
        assert len(postgres.texts) == asked


async def test_an_answer_that_was_read_late_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a worker that was frozen: it reads the answer first, and then that the connection is gone."""
    monkeypatch.setattr(lanes, "_PROOF_SECONDS", 0.0)
    postgres = FakePostgres()
    async with running(postgres) as lane:
        await lane.submit(ECHO, "a")
        postgres.die()
        with pytest.raises(LaneLost):
            await lane.prove_alive()


async def test_a_connection_that_is_lost_is_known_to_be_so_at_once() -> None:
    postgres = FakePostgres()
    async with running(postgres) as lane:
        await lane.submit(ECHO, "a")
        lane.abandon("an unlock failed")
        with pytest.raises(LaneLost):
            await lane.prove_alive()
