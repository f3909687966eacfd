"""The journal: a step that was recorded is not made again, whatever becomes of the attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import JsonValue
from structlog.testing import capture_logs

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.books import Book
from tests.unit.examples import NOW, a_request, executor_of
from worker.errors import LaneLost
from worker.executors.attempt import Outcome, attempt, new_turn
from worker.executors.function import executor
from worker.executors.journal import Journal, StepRecord, StepState
from worker.executors.turn import Turn, TurnContext


def _same(value: Any) -> Any:
    return value


class Calls:
    """Counts what is called, and answers with the count."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def make(self, name: str) -> JsonValue:
        self.made.append(name)
        return f"{name} {self.made.count(name)}"


async def test_a_step_costs_one_write_and_one_more_where_it_must_not_be_made_twice() -> None:
    calls, book = Calls(), Book()

    async def run(turn: Turn) -> Any:
        await turn.step("look", lambda: calls.make("look"), repeatable=True)
        return await turn.step("pay", lambda: calls.make("pay"))

    outcome = await book.attempt(executor_of(run))
    assert outcome.content == "pay 1"
    assert [[(step.key, step.state.value) for step in write] for write in book.writes] == [
        [("context", "started"), ("look#1", "done")],
        [("pay#1", "started")],
        [("pay#1", "done")],
    ]


@pytest.mark.parametrize("dies_at", range(1, 7))
async def test_wherever_the_worker_dies_no_recorded_step_is_made_again(dies_at: int) -> None:
    calls, book = Calls(), Book(dies_at=dies_at)

    async def run(turn: Turn) -> Any:
        return [await turn.step(name, partial(calls.make, name), repeatable=True) for name in "abcde"]

    outcome = await book.until_done(executor_of(run))
    again = "abcde"[dies_at - 1 : dies_at]
    assert calls.made.count(again) == 2 if again else calls.made == list("abcde")
    assert all(calls.made.count(name) == 1 for name in "abcde" if name != again)
    assert outcome.content == [f"{name} {2 if name == again else 1}" for name in "abcde"]


async def test_a_step_that_was_started_and_not_recorded_is_not_made_again_and_ends_the_turn() -> None:
    calls, book = Calls(), Book(dies_at=2)

    async def run(turn: Turn) -> Any:
        try:
            return await turn.step("pay", lambda: calls.make("pay"))
        except Exception:  # noqa: BLE001 - as users do
            return "users' code that swallows everything"

    with pytest.raises(LaneLost):
        await book.attempt(executor_of(run))
    outcome = await book.attempt(executor_of(run))
    assert calls.made == ["pay"]
    assert (outcome.status, outcome.error and outcome.error.code) == (RunStatus.ERROR, ErrorCode.STEP_UNCERTAIN)


async def test_what_a_step_changed_in_the_state_is_changed_again() -> None:
    book = Book(fields={"session_state": {"cart": ["tea"], "old": 1}}, dies_at=4)

    async def run(turn: Turn) -> Any:
        def change() -> None:
            turn.session_state["cart"].append("cup")
            del turn.session_state["old"]

        await turn.step("first", change, repeatable=True)
        turn.session_state["seen"] = turn.session_state.get("seen", 0) + 1  # made by the code, in each attempt
        await turn.step("second", lambda: turn.session_state.update(new=True), repeatable=True)
        await turn.step("third", lambda: None, repeatable=True)
        await turn.step("fourth", lambda: None, repeatable=True)
        return dict(turn.session_state)

    expected = {"cart": ["tea", "cup"], "seen": 1, "new": True}
    outcome = await book.until_done(executor_of(run))
    assert book.attempts == 2
    assert outcome.content == expected
    assert outcome.session_state == expected


async def test_steps_side_by_side_are_replayed_by_their_own_keys_and_their_changes_in_their_order() -> None:
    book, calls = Book(dies_at=4), Calls()

    async def run(turn: Turn) -> Any:
        async def one(name: str, after: asyncio.Event | None, done: asyncio.Event) -> Any:
            async def work() -> JsonValue:
                if after is not None:
                    await after.wait()
                turn.session_state["last"] = name
                return calls.make(name)

            result = await turn.step(name, work, repeatable=True)
            done.set()
            return result

        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        results = await asyncio.gather(one("a", second, first), one("b", None, second), one("c", first, third))
        await turn.step("end", lambda: None, repeatable=True)
        return [*results, turn.session_state["last"]]

    outcome = await book.until_done(executor_of(run))
    assert (book.attempts, calls.made) == (2, ["b", "a", "c"])
    assert book.recorded() == ["b#1", "a#1", "c#1", "end#1"]
    assert outcome.content == ["a 1", "b 1", "c 1", "c"]


async def test_a_failure_is_recorded_and_fails_again_under_its_name() -> None:
    class PaymentDeclined(Exception):
        pass

    book, calls = Book(dies_at=4), Calls()

    async def run(turn: Turn) -> Any:
        name = ""

        def pay() -> JsonValue:
            calls.make("pay")
            raise PaymentDeclined("card 4711")

        try:
            await turn.step("pay", pay)
        except Exception as error:  # noqa: BLE001 - as users do
            name = type(error).__name__
        await turn.step("next", lambda: None, repeatable=True)
        await turn.step("last", lambda: None, repeatable=True)
        return name

    outcome = await book.until_done(executor_of(run))
    assert (book.attempts, calls.made, outcome.content) == (2, ["pay"], "PaymentDeclined")
    assert b"4711" not in book.steps["pay#1"].record


async def test_results_come_again_as_they_were() -> None:
    given: list[Any] = ["a\x00b", "\ud800", {"z": 1, "a": [1.0, None]}, 10**30, -0.0, "ü", ""]
    book = Book(dies_at=len(given) + 1)
    seen: list[list[Any]] = []

    async def run(turn: Turn) -> Any:
        seen.append([await turn.step("v", partial(_same, value), repeatable=True) for value in given])
        await turn.step("end", lambda: None, repeatable=True)
        return None

    await book.until_done(executor_of(run))
    first, second = seen
    assert repr(first) == repr(second)


async def test_code_that_asks_for_another_step_goes_on_from_the_last_that_matches_and_the_log_says_so() -> None:
    calls, book = Calls(), Book(dies_at=3)

    def asking_for(*names: str) -> Any:
        async def run(turn: Turn) -> Any:
            return [await turn.step(name, partial(calls.make, name), repeatable=True) for name in names]

        return executor_of(run)

    with pytest.raises(LaneLost):
        await book.attempt(asking_for("a", "b", "c"))
    with capture_logs() as logs:
        outcome = await book.attempt(asking_for("a", "x", "y"))
    assert outcome.content == ["a 1", "x 1", "y 1"]
    assert calls.made == ["a", "b", "c", "x", "y"]
    assert [log["step"] for log in logs if log["event"] == "journal_diverged"] == ["b#1"]


async def test_without_a_journal_nothing_is_recorded() -> None:
    @executor("t1", journal=False)
    async def run(turn: Turn) -> Any:
        return await turn.step("a", lambda: 1)

    assert run.journal is False
    assert executor_of(run.function).journal is True


async def test_what_is_left_behind_records_nothing_after_the_turn() -> None:
    book = Book()
    left: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def run(turn: Turn) -> Any:
        async def later() -> None:
            await over.wait()
            await turn.step("late", lambda: 1)

        left.append(asyncio.create_task(later()))
        return None

    await book.attempt(executor_of(run))
    over.set()
    (late,) = await asyncio.gather(*left, return_exceptions=True)
    assert isinstance(late, asyncio.CancelledError)
    assert book.writes == []


async def test_a_lost_lane_ends_the_attempt_though_its_code_would_go_on() -> None:
    book = Book(dies_at=1)
    went_on: list[bool] = []

    async def run(turn: Turn) -> Any:
        with suppress(BaseException):
            await turn.step("a", lambda: 1, repeatable=True)
        went_on.append(True)
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        with pytest.raises(LaneLost):
            await book.attempt(executor_of(run))


async def test_an_uncertain_step_that_is_repeatable_now_is_made_again() -> None:
    calls, book = Calls(), Book(dies_at=2)

    def paying(*, repeatable: bool) -> Any:
        async def run(turn: Turn) -> Any:
            return await turn.step("pay", lambda: calls.make("pay"), repeatable=repeatable)

        return executor_of(run)

    with pytest.raises(LaneLost):
        await book.attempt(paying(repeatable=False))
    assert book.recorded(StepState.STARTED) == ["pay#1"]
    assert (await book.attempt(paying(repeatable=True))).content == "pay 2"


class LosesItsLane:
    """A journal's writes, until the lane is lost: for good, as a lane is."""

    def __init__(self, at: str, state: StepState) -> None:
        self.recorded: dict[str, StepRecord] = {}
        self._at = (at, state)
        self.lost = asyncio.Event()

    async def write(self, steps: Sequence[StepRecord]) -> None:
        await asyncio.sleep(0)
        if self.lost.is_set() or self._at in [(step.key, step.state) for step in steps]:
            self.lost.set()
            raise LaneLost("the lane is lost")
        self.recorded |= {step.key: step for step in steps}


async def _attempt(
    run: Callable[[Turn], Awaitable[Any]],
    write: Callable[[Sequence[StepRecord]], Awaitable[None]],
    recorded: Sequence[StepRecord] = (),
    *,
    limit_seconds: float = 60,
) -> tuple[Outcome | None, Journal]:
    """One attempt, and its journal; without an outcome if it lost its lane."""
    journal = Journal(write, recorded=recorded)
    turn = new_turn(a_request(), None, TurnContext(NOW), attempt=1, journal=journal)
    limit = timedelta(seconds=limit_seconds)
    try:
        return await attempt(executor_of(run), turn, limit=limit, now=NOW, deadline=None), journal
    except LaneLost:
        return None, journal


def _states(steps: Iterable[StepRecord]) -> list[tuple[str, str]]:
    return [(step.key, step.state.value) for step in steps]


async def test_what_was_made_when_the_lane_was_lost_can_be_recorded_later_and_is_then_not_made_again() -> None:
    calls, lane = Calls(), LosesItsLane("pay#1", StepState.DONE)

    async def run(turn: Turn) -> Any:
        return await turn.step("pay", lambda: calls.make("pay"))

    _, journal = await _attempt(run, lane.write)
    assert _states(journal.unrecorded) == [("pay#1", "done")]
    recorded = lane.recorded | {step.key: step for step in journal.unrecorded}
    outcome, _ = await _attempt(run, Book().write, list(recorded.values()))
    assert outcome is not None
    assert outcome.content == "pay 1"


async def test_what_was_not_begun_when_the_lane_was_lost_is_begun_later() -> None:
    """Nobody knows whether its start is recorded: it may be written over."""
    calls, lane = Calls(), LosesItsLane("pay#1", StepState.STARTED)

    async def run(turn: Turn) -> Any:
        return await turn.step("pay", lambda: calls.make("pay"))

    _, journal = await _attempt(run, lane.write)
    assert (_states(journal.unrecorded), calls.made) == ([("context", "started"), ("pay#1", "not_made")], [])
    outcome, _ = await _attempt(run, Book().write, journal.unrecorded)
    assert outcome is not None
    assert outcome.content == "pay 1"


async def test_what_is_being_made_when_the_lane_is_lost_comes_to_its_end_and_nothing_is_begun_after_it() -> None:
    calls, lane = Calls(), LosesItsLane("quick#1", StepState.DONE)

    async def slow() -> JsonValue:
        await lane.lost.wait()
        await asyncio.sleep(0.05)
        return calls.make("slow")

    async def run(turn: Turn) -> Any:
        async def with_one_after_it() -> None:
            await turn.step("slow", slow)
            await turn.step("later", lambda: calls.make("later"))

        return await asyncio.gather(with_one_after_it(), turn.step("quick", lambda: calls.make("quick")))

    _, journal = await _attempt(run, lane.write)
    assert calls.made == ["quick", "slow"]
    assert _states(journal.unrecorded) == [("quick#1", "done"), ("slow#1", "done")]


async def test_a_step_that_waits_for_one_within_it_is_not_waited_for() -> None:
    lane = LosesItsLane("inner#1", StepState.DONE)

    async def run(turn: Turn) -> Any:
        return await turn.step("outer", lambda: turn.step("inner", lambda: 1))

    async with asyncio.timeout(5):
        _, journal = await _attempt(run, lane.write)
    assert _states(journal.unrecorded) == [("inner#1", "done")]


async def test_what_is_being_made_is_waited_for_as_long_as_the_turn_may_take() -> None:
    lane = LosesItsLane("quick#1", StepState.DONE)

    async def run(turn: Turn) -> Any:
        endless = turn.step("endless", asyncio.Event().wait)
        return await asyncio.gather(endless, turn.step("quick", lambda: 1))

    async with asyncio.timeout(5):
        _, journal = await _attempt(run, lane.write, limit_seconds=0.2)
    assert _states(journal.unrecorded) == [("quick#1", "done")]


class Slow:
    """Writes that wait for room on Postgres's disk."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def write(self, _: Sequence[StepRecord]) -> None:
        await asyncio.sleep(self._seconds)


async def test_the_time_in_which_a_step_waits_to_be_recorded_is_not_the_turn_s() -> None:
    async def run(turn: Turn) -> Any:
        steps = (turn.step(name, lambda: 1, repeatable=True) for name in ("one", "two"))
        await asyncio.gather(*steps)  # side by side: that time counts once
        await turn.step("three", lambda: 1, repeatable=True)
        return "done"

    outcome, journal = await _attempt(run, Slow(0.3).write, limit_seconds=0.2)
    assert outcome is not None
    assert outcome.content == "done"
    assert 0.6 <= journal.waited_seconds < 1.2


async def test_what_the_turn_itself_takes_is_limited_all_the_same() -> None:
    async def run(turn: Turn) -> Any:
        await turn.step("one", lambda: 1, repeatable=True)
        await asyncio.Event().wait()

    outcome, _ = await _attempt(run, Slow(0.3).write, limit_seconds=0.2)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.TURN_TIMEOUT


async def test_a_step_that_may_be_made_twice_is_not_begun_once_others_may_have_the_session() -> None:
    calls, held = Calls(), asyncio.Event()
    held.set()

    async def still_held() -> None:
        if not held.is_set():
            raise LaneLost("the lane is gone")

    async def write(_: Sequence[StepRecord]) -> None:
        held.clear()  # the answer was read late: the lane is gone since

    async def run(turn: Turn) -> Any:
        await turn.step("first", lambda: calls.make("first"), repeatable=True)
        return await turn.step("second", lambda: calls.make("second"), repeatable=True)

    turn = new_turn(a_request(), None, TurnContext(NOW), attempt=1, journal=Journal(write, held=still_held))
    with pytest.raises(LaneLost):
        await attempt(executor_of(run), turn, limit=timedelta(seconds=5), now=NOW, deadline=None)
    assert calls.made == ["first"]


@pytest.mark.parametrize(
    ("limit", "most"), [("MAX_RECORDS", 10), ("MAX_RECORDED_BYTES", 1000)], ids=["records", "bytes"]
)
async def test_a_turn_that_never_ends_recording_ends_at_its_limit_also_over_several_attempts(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(f"worker.executors.journal.{limit}", most)
    book = Book(dies_at=6)
    made = 0

    async def run(turn: Turn) -> Any:
        nonlocal made
        for number in range(100):
            made += 1
            await turn.step(f"step {number}", lambda: "x" * 100, repeatable=True)

    outcome = await book.until_done(executor_of(run))
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.USAGE_LIMIT_EXCEEDED
    assert made < 30
