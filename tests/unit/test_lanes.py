"""Lanes: statements of concurrent turns are batched, and a bad row is alone in the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sql
from tests.support.waiting import eventually
from tests.unit.examples import everything_that_can_run
from tests.unit.lane_connections import ECHO, FakePostgres, running, settled, statement
from worker.errors import ClaimOutdated, StatementRefused, StoreFull, StoreUnavailable
from worker.sessions import lanes
from worker.sessions.lanes import LaneConnection, Statement


def _submit(lane: LaneConnection, *rows: str) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(lane.submit(ECHO, row)) for row in rows]


async def test_a_lone_row_never_waits_for_others() -> None:
    postgres = FakePostgres()
    async with running(postgres) as lane:
        for row in ("a", "b", "c"):
            async with asyncio.timeout(1):
                assert await lane.submit(ECHO, row) == f"{row}!"
    assert postgres.batches == [["a"], ["b"], ["c"]]


async def test_rows_gather_while_one_statement_is_under_way_and_go_together() -> None:
    postgres = FakePostgres()
    postgres.hold()
    async with running(postgres) as lane:
        first = _submit(lane, "a")
        await eventually(lambda: postgres.under_way == 1)
        rest = _submit(lane, "b", "c", "d")
        await everything_that_can_run()
        assert postgres.batches == [["a"]]
        postgres.release()
        assert await settled(*first, *rest) == ["a!", "b!", "c!", "d!"]
    assert postgres.batches == [["a"], ["b", "c", "d"]]


async def test_statements_of_different_kinds_are_batched_apart_and_take_turns() -> None:
    postgres = FakePostgres()
    postgres.hold()
    other = statement("other")
    async with running(postgres) as lane:
        first = _submit(lane, "a")
        await eventually(lambda: postgres.under_way == 1)
        rest = [asyncio.create_task(lane.submit(kind, row)) for kind, row in [(ECHO, "b"), (other, "x"), (ECHO, "c")]]
        await everything_that_can_run()
        postgres.release()
        await settled(*first, *rest)
    assert postgres.batches == [["a"], ["b", "c"], ["x"]]
    assert postgres.texts == ["echo", "echo", "other"]


async def test_a_batch_of_large_rows_is_limited_by_their_bytes_and_one_goes_however_large() -> None:
    postgres = FakePostgres()
    postgres.hold()
    sized = replace(ECHO, bytes_of=lambda row: int(row) * 2**20)
    async with running(postgres) as lane:
        first = [asyncio.create_task(lane.submit(sized, "0"))]
        await eventually(lambda: postgres.under_way == 1)
        rest = [asyncio.create_task(lane.submit(sized, row)) for row in ("9", "1", "2", "1", "1", "9")]
        await everything_that_can_run()
        postgres.release()
        await settled(*first, *rest)
    assert postgres.batches == [["0"], ["9"], ["1", "2", "1"], ["1"], ["9"]]


async def test_a_batch_is_limited_and_other_statements_go_in_between() -> None:
    postgres = FakePostgres()
    postgres.hold()
    other = statement("other")
    rows = [str(number) for number in range(600)]
    async with running(postgres) as lane:
        first = _submit(lane, "a")
        await eventually(lambda: postgres.under_way == 1)
        rest = [*_submit(lane, *rows), asyncio.create_task(lane.submit(other, "x"))]
        await everything_that_can_run()
        postgres.release()
        assert await settled(*first, *rest) == ["a!", *(f"{row}!" for row in rows), "x!"]
    assert [len(batch) for batch in postgres.batches] == [1, 256, 1, 256, 88]
    assert postgres.texts == ["echo", "echo", "other", "echo", "echo"]


async def test_an_idle_lane_asks_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_PING_SECONDS", 0.01)
    postgres = FakePostgres()
    async with running(postgres) as lane:
        await eventually(lambda: postgres.texts.count(sql.PING) >= 2)
        assert await lane.submit(ECHO, "a") == "a!"


def _refuses(*bad: str) -> FakePostgres:
    """Postgres refuses a statement that has one of these rows."""

    def before(_: str, rows: list[str]) -> None:
        if set(bad) & set(rows):
            raise asyncpg.InvalidTextRepresentationError("invalid input syntax for type json")

    return FakePostgres(before)


async def test_a_batch_that_is_refused_is_halved_until_the_bad_row_is_alone() -> None:
    postgres = _refuses("c")
    postgres.hold()
    async with running(postgres) as lane:
        waiting = _submit(lane, "first", *"abcdefgh")
        await everything_that_can_run()
        postgres.release()
        results = await settled(*waiting)
    assert [result for result in results if isinstance(result, str)] == ["first!", *(f"{row}!" for row in "abdefgh")]
    (refused,) = [result for result in results if isinstance(result, Exception)]
    assert isinstance(refused, StatementRefused)
    assert len(postgres.batches) <= 9, "halved, and not tried one by one"


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
async def test_each_good_row_gets_its_result_and_each_bad_one_its_own_error(count: int, bad: set[int]) -> None:
    rows = [f"row {number}" for number in range(count)]
    bad_rows = {rows[number] for number in bad if number < count}
    postgres = _refuses(*bad_rows)
    async with running(postgres) as lane:
        results = await settled(*_submit(lane, *rows))
    for row, result in zip(rows, results, strict=True):
        if row in bad_rows:
            assert isinstance(result, StatementRefused)
        else:
            assert result == f"{row}!"


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (asyncpg.UniqueViolationError("duplicate key"), ClaimOutdated),
        (asyncpg.DeadlockDetectedError("deadlock"), StoreUnavailable),
        (asyncpg.LockNotAvailableError("lock_timeout"), StoreUnavailable),
        (asyncpg.QueryCanceledError("statement_timeout"), StoreUnavailable),
        (asyncpg.DiskFullError("no space"), StoreFull),
        (asyncpg.UntranslatableCharacterError("\\u0000"), StatementRefused),
        (asyncpg.NumericValueOutOfRangeError("too large"), StatementRefused),
        # Raised by asyncpg itself, before anything is sent: the row's mistake, and the connection is well.
        (asyncpg.DataError("invalid input for query argument $1"), StatementRefused),
    ],
    ids=lambda case: getattr(case, "__name__", type(case).__name__),
)
async def test_an_error_of_one_row_is_told_as_ours_and_the_lane_goes_on(
    error: Exception, ours: type[Exception]
) -> None:
    def before(_: str, rows: list[str]) -> None:
        if "bad" in rows:
            raise error

    async with running(FakePostgres(before)) as lane:
        results = await settled(*_submit(lane, "good", "bad", "better"))
        assert results[0] == "good!"
        assert results[2] == "better!"
        assert type(results[1]) is ours
        async with asyncio.timeout(5):
            assert await lane.submit(ECHO, "next") == "next!"


async def test_an_exception_among_the_results_is_raised_where_its_row_was_submitted() -> None:
    def results(_: object, records: object) -> list[str | Exception]:
        return [LookupError(row) if row == "b!" else row for row in records]  # type: ignore[attr-defined]

    mixed: Statement[str, str] = Statement("mixed", "mixed", lambda rows: [list(rows)], results)
    async with running(FakePostgres()) as lane:
        a, b, c = await settled(*(asyncio.create_task(lane.submit(mixed, row)) for row in "abc"))
    assert (a, c) == ("a!", "c!")
    assert isinstance(b, LookupError)


@pytest.mark.parametrize("error", [KeyError("position"), ValueError("recursion limit exceeded")])
async def test_results_that_can_t_be_read_are_told_to_their_callers_and_the_lane_goes_on(error: Exception) -> None:
    """Another program's row may be unreadable: it must not take the lane, and with it every worker, down."""

    def results(_: object, __: object) -> list[str]:
        raise error

    unreadable: Statement[str, str] = Statement("unreadable", "unreadable", lambda rows: [list(rows)], results)
    async with running(FakePostgres()) as lane:
        (result,) = await settled(asyncio.create_task(lane.submit(unreadable, "a")))
        assert isinstance(result, Exception)
        async with asyncio.timeout(5):
            assert await lane.submit(ECHO, "next") == "next!"


async def test_rows_that_can_t_be_made_arguments_are_alone_in_the_end_too() -> None:
    def arguments(rows: object) -> list[object]:
        if "bad" in list(rows):  # type: ignore[call-overload]
            raise ValueError("not JSON")
        return [rows]

    strict: Statement[str, str] = Statement("strict", "strict", arguments, lambda _, records: records)  # type: ignore[arg-type,return-value]
    async with running(FakePostgres()) as lane:
        good, bad = await settled(*(asyncio.create_task(lane.submit(strict, row)) for row in ("good", "bad")))
    assert good == "good!"
    assert isinstance(bad, ValueError)


async def test_a_caller_that_is_cancelled_while_its_statement_is_under_way_takes_nothing_from_the_others() -> None:
    postgres = FakePostgres()
    postgres.hold()
    async with running(postgres) as lane:
        blocker = _submit(lane, "blocker")
        await eventually(lambda: postgres.under_way == 1)
        waiting = _submit(lane, "a", "b", "c")
        await everything_that_can_run()
        postgres.release()
        await settled(*blocker)
        postgres.hold()
        await eventually(lambda: postgres.batches[-1:] == [["a", "b", "c"]])
        waiting[1].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[1]
        postgres.release()
        assert await settled(waiting[0], waiting[2]) == ["a!", "c!"]
        assert await lane.submit(ECHO, "next") == "next!"


async def test_what_a_cancelled_caller_submitted_is_run_all_the_same() -> None:
    """An unlock that is dropped would keep the session from every other worker."""
    postgres = FakePostgres()
    postgres.hold()
    async with running(postgres) as lane:
        blocker = _submit(lane, "blocker")
        await eventually(lambda: postgres.under_way == 1)
        cancelled, other = _submit(lane, "cancelled", "other")
        await everything_that_can_run()
        cancelled.cancel()
        postgres.release()
        assert await settled(*blocker, other) == ["blocker!", "other!"]
    assert [row for batch in postgres.batches for row in batch] == ["blocker", "cancelled", "other"]
