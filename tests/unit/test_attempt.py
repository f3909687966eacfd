"""One attempt of a turn: whatever the executor does becomes an outcome."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import JsonValue
from structlog.typing import EventDict

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.examples import NOW, a_turn, executor_of
from worker.errors import ModelFailed, RunCancelled, TurnFailed, UsageLimitReached
from worker.executors import attempt as attempt_module
from worker.executors.attempt import Outcome, attempt
from worker.executors.json_values import MAX_STATE_BYTES
from worker.executors.turn import Turn

_LONG = timedelta(seconds=30)
_SHORT = timedelta(seconds=0.02)
_SECRET = "hunter2hunter2"


async def _outcome(
    function: Any, *, turn: Turn | None = None, limit: timedelta = _LONG, deadline: datetime | None = None
) -> Outcome:
    return await attempt(executor_of(function), turn or a_turn(), limit=limit, now=NOW, deadline=deadline)


def _assert_failed(outcome: Outcome, code: ErrorCode) -> TurnFailed:
    assert outcome.status is RunStatus.ERROR
    assert outcome.content is None
    assert outcome.session_state is None, "the stored state stays as it is"
    assert outcome.error is not None
    assert outcome.error.code is code
    return outcome.error


async def test_an_answer_is_completed_with_the_state_as_the_turn_left_it() -> None:
    async def answers(turn: Turn) -> JsonValue:
        turn.session_state["seen"] = 1
        del turn.session_state["old"]
        return {"answer": [turn.input]}

    outcome = await _outcome(answers, turn=a_turn(session_state={"old": 0, "kept": True}))
    assert outcome == Outcome(RunStatus.COMPLETED, {"answer": ["hello"]}, {"kept": True, "seen": 1})


async def test_an_answer_of_nothing_is_completed_too() -> None:
    async def says_nothing(_: Turn) -> JsonValue:
        return None

    assert await _outcome(says_nothing) == Outcome(RunStatus.COMPLETED, None, {})


async def test_an_answer_and_a_state_become_plain_json() -> None:
    async def odd(turn: Turn) -> Any:
        turn.session_state["odd"] = {1}
        return ("\x00", NOW)

    assert await _outcome(odd) == Outcome(RunStatus.COMPLETED, ["\ufffd", "2030-01-31T12:00:00Z"], {"odd": [1]})


async def test_an_executor_that_raises_fails_with_the_error_s_type_and_not_its_text(logged: list[EventDict]) -> None:
    async def raises(turn: Turn) -> JsonValue:
        turn.session_state["half"] = True
        raise LookupError(f"key {_SECRET}")

    error = _assert_failed(await _outcome(raises), ErrorCode.EXECUTOR_FAILED)
    assert "LookupError" in error.message
    assert _SECRET not in error.message
    assert any(event["event"] == "executor_failed" and event.get("exc_info") for event in logged)


@pytest.mark.parametrize(
    ("raised", "code", "retryable"),
    [
        (ModelFailed("the model is away", retryable=True), ErrorCode.MODEL_ERROR, True),
        (ModelFailed("the model said no"), ErrorCode.MODEL_ERROR, False),
        (UsageLimitReached("too many"), ErrorCode.USAGE_LIMIT_EXCEEDED, False),
    ],
)
async def test_a_failure_with_a_code_keeps_it(raised: TurnFailed, code: ErrorCode, *, retryable: bool) -> None:
    async def fails(_: Turn) -> JsonValue:
        raise raised

    error = _assert_failed(await _outcome(fails), code)
    assert error.message == raised.message
    assert error.is_retryable is retryable


async def test_an_exception_group_of_a_task_group_fails_the_turn() -> None:
    async def child() -> None:
        raise ValueError("child")

    async def grouped(_: Turn) -> JsonValue:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
        return None

    _assert_failed(await _outcome(grouped), ErrorCode.EXECUTOR_FAILED)


async def test_a_turn_that_takes_too_long_is_stopped_and_worth_another_try() -> None:
    stopped = asyncio.Event()

    async def sleeps(_: Turn) -> JsonValue:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return None

    error = _assert_failed(await _outcome(sleeps, limit=_SHORT), ErrorCode.TURN_TIMEOUT)
    assert stopped.is_set()
    assert error.is_retryable


async def test_a_turn_past_its_deadline_is_stopped_with_that_code() -> None:
    async def sleeps(_: Turn) -> JsonValue:
        await asyncio.Event().wait()
        return None

    _assert_failed(await _outcome(sleeps, deadline=NOW + _SHORT), ErrorCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    ("limit", "deadline", "code"),
    [
        (_SHORT, NOW + _LONG, ErrorCode.TURN_TIMEOUT),
        (_LONG, NOW + _SHORT, ErrorCode.DEADLINE_EXCEEDED),
        (_SHORT, None, ErrorCode.TURN_TIMEOUT),
        (_LONG, NOW - _LONG, ErrorCode.DEADLINE_EXCEEDED),
    ],
    ids=["limit first", "deadline first", "no deadline", "deadline passed"],
)
async def test_whichever_of_limit_and_deadline_comes_first_is_the_code(
    limit: timedelta, deadline: datetime | None, code: ErrorCode
) -> None:
    async def sleeps(_: Turn) -> JsonValue:
        await asyncio.Event().wait()
        return None

    _assert_failed(await _outcome(sleeps, limit=limit, deadline=deadline), code)


async def test_a_deadline_far_away_is_no_limit() -> None:
    async def answers(_: Turn) -> JsonValue:
        return "in time"

    far = datetime.fromisoformat("9999-12-31T23:59:59-23:59")
    assert (await _outcome(answers, deadline=far)).content == "in time"


async def test_an_executor_s_own_timeout_error_is_its_failure_and_not_the_turn_s() -> None:
    async def gives_up(_: Turn) -> JsonValue:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return None

    error = _assert_failed(await _outcome(gives_up), ErrorCode.EXECUTOR_FAILED)
    assert "TimeoutError" in error.message


async def test_an_executor_that_makes_the_cancellation_an_error_of_its_own_has_timed_out_all_the_same() -> None:
    async def translates(_: Turn) -> JsonValue:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("interrupted") from None
        return None

    _assert_failed(await _outcome(translates, limit=_SHORT), ErrorCode.TURN_TIMEOUT)


async def test_an_executor_that_answers_although_it_was_stopped_has_timed_out_all_the_same() -> None:
    async def insists(_: Turn) -> JsonValue:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return None

    _assert_failed(await _outcome(insists, limit=_SHORT), ErrorCode.TURN_TIMEOUT)


async def test_an_executor_that_ignores_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_module, "_CANCELLATION_SECONDS", 0.02, raising=False)
    give_up, gone = asyncio.Event(), asyncio.Event()

    async def ignores(_: Turn) -> JsonValue:
        while not give_up.is_set():
            with suppress(asyncio.CancelledError):
                await give_up.wait()
        gone.set()
        return "late"

    async with asyncio.timeout(10):
        outcome = await _outcome(ignores, limit=_SHORT)
    _assert_failed(outcome, ErrorCode.TURN_TIMEOUT)
    give_up.set()
    await gone.wait()


async def test_a_cancelled_error_of_the_executor_s_own_ends_its_turn_and_not_the_worker_s_task() -> None:
    async def child() -> None:
        await asyncio.Event().wait()

    async def cancels_its_child(_: Turn) -> JsonValue:
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        task.cancel()
        await task  # raises CancelledError, although nobody cancelled the turn
        return None

    try:
        outcome = await _outcome(cancels_its_child)
    except asyncio.CancelledError:
        pytest.fail("the executor's CancelledError came out of the attempt")
    _assert_failed(outcome, ErrorCode.EXECUTOR_FAILED)


async def test_an_executor_that_calls_sys_exit_ends_its_turn_and_not_the_worker() -> None:
    async def exits(_: Turn) -> JsonValue:
        sys.exit("bye")

    try:
        outcome = await _outcome(exits)
    except SystemExit:
        pytest.fail("the executor's SystemExit came out of the attempt")
    _assert_failed(outcome, ErrorCode.EXECUTOR_FAILED)


async def test_a_turn_that_the_worker_cancels_is_cancelled() -> None:
    started = asyncio.Event()

    async def sleeps(_: Turn) -> JsonValue:
        started.set()
        await asyncio.Event().wait()
        return None

    task = asyncio.create_task(_outcome(sleeps))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("answer", [object(), float("nan"), {"a": object()}, b"\xff"])
async def test_an_answer_that_is_not_json_is_an_invalid_result(answer: Any) -> None:
    async def answers(_: Turn) -> JsonValue:
        return answer  # type: ignore[no-any-return]

    _assert_failed(await _outcome(answers), ErrorCode.INVALID_RESULT)


async def test_a_state_that_is_not_json_is_an_invalid_result() -> None:
    async def leaves(turn: Turn) -> JsonValue:
        turn.session_state["connection"] = object()
        return "fine"

    error = _assert_failed(await _outcome(leaves), ErrorCode.INVALID_RESULT)
    assert "session state" in error.message


@pytest.mark.parametrize("state", [None, [], "text"])
async def test_a_state_that_is_no_object_is_an_invalid_result_and_does_not_empty_the_stored_one(state: Any) -> None:
    async def replaces(turn: Turn) -> JsonValue:
        turn.session_state = state
        return "fine"

    _assert_failed(await _outcome(replaces, turn=a_turn(session_state={"kept": 1})), ErrorCode.INVALID_RESULT)


@pytest.mark.parametrize("name", ["Trip to Paris", "n" * 255])
async def test_a_name_that_the_turn_gives_its_session_is_stored(name: str) -> None:
    assert (await _outcome(_naming(name))).session_name == name


@pytest.mark.parametrize("before", [None, "Before"])
async def test_a_name_of_none_changes_nothing(before: str | None) -> None:
    turn = a_turn()
    turn.session.name = before
    assert (await _outcome(_naming(None), turn=turn)).session_name is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "0 characters"), ("n" * 256, "256 characters"), (5, "int"), (["n"], "list"), (b"n", "bytes")],
)
async def test_a_name_that_can_not_be_one_is_an_invalid_result_that_says_so(name: Any, reason: str) -> None:
    message = _assert_failed(await _outcome(_naming(name)), ErrorCode.INVALID_RESULT).message
    assert "session name" in message
    assert reason in message


async def test_what_jsonb_refuses_in_a_name_is_replaced() -> None:
    assert (await _outcome(_naming("a\x00b\ud800"))).session_name == "a\ufffdb\ufffd"


@pytest.mark.parametrize("count", [-5, 1.5, None, True, "5"])
async def test_counts_that_are_none_are_an_invalid_result_and_not_summed_up(count: Any) -> None:
    async def counts(turn: Turn) -> JsonValue:
        turn.usage.input_tokens = count
        return "fine"

    turn = a_turn()
    _assert_failed(await _outcome(counts, turn=turn), ErrorCode.INVALID_RESULT)
    assert turn.usage.input_tokens == 0


def _naming(name: Any) -> Any:
    async def names(turn: Turn) -> JsonValue:
        turn.session_name = name
        return "fine"

    return names


async def test_a_state_put_in_place_of_the_given_one_is_stored() -> None:
    async def replaces(turn: Turn) -> JsonValue:
        turn.session_state = {"new": 1}
        return "fine"

    assert (await _outcome(replaces, turn=a_turn(session_state={"old": 1}))).session_state == {"new": 1}


async def test_a_step_that_is_not_json_ends_the_turn_as_an_invalid_result() -> None:
    async def steps(turn: Turn) -> Any:
        return await turn.step("odd", object)

    _assert_failed(await _outcome(steps), ErrorCode.INVALID_RESULT)


async def test_a_run_that_was_cancelled_before_its_attempt_ends_at_once_and_is_not_begun_again() -> None:
    begun: list[str] = []

    async def goes_on(turn: Turn) -> str:
        begun.append(turn.run_id)
        await asyncio.Event().wait()
        return "never"

    turn = a_turn(session_state={"kept": 1})
    turn.steps.journal.stop(RunCancelled("the run was cancelled"))
    async with asyncio.timeout(5):
        outcome = await _outcome(goes_on, turn=turn)
    assert (outcome.status, outcome.session_state) == (RunStatus.CANCELLED, {"kept": 1})
    assert begun == []


async def test_a_state_that_has_grown_too_large_is_an_invalid_result_and_the_stored_one_stays() -> None:
    async def collects(turn: Turn) -> JsonValue:
        turn.session_state["seen"] = "x" * MAX_STATE_BYTES
        return "fine"

    outcome = await _outcome(collects)
    assert "larger than" in _assert_failed(outcome, ErrorCode.INVALID_RESULT).message
    assert outcome.session_state is None
