"""Results that Postgres has not confirmed: kept within bounds, the oldest dropped, without what only the run needed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from schemas.replies import RunStatus
from schemas.requests import RunRequest
from tests.unit.examples import a_claim, a_past_run, a_request, a_turn
from worker.executors.attempt import Outcome
from worker.executors.journal import Journal
from worker.executors.steps import Steps
from worker.executors.turn import Turn
from worker.replies.answers import Timing
from worker.turns.kept_results import KeptResult, KeptResults, KeptSteps

REQUESTS = [a_request(run_id=f"r{number}") for number in range(5)]


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def a_result(content: str = "answer", **of_turn: Any) -> KeptResult:
    turn = replace(a_turn(), **of_turn)
    return KeptResult(a_claim(), turn, Outcome(RunStatus.COMPLETED, content, {}), Timing(0, 1, 2))


def a_turn_of(attempt: int) -> Turn:
    return replace(a_turn(), attempt=attempt)


def kept(results: KeptResults) -> list[RunRequest]:
    return [request for request in REQUESTS if results.find(request) is not None]


def test_a_result_is_found_by_its_request_until_it_is_dropped() -> None:
    results = KeptResults()
    results.keep(REQUESTS[0], a_result())
    found = results.find(a_request(run_id="r0"))
    assert isinstance(found, KeptResult)
    assert found.outcome.content == "answer"
    results.drop(REQUESTS[0])
    assert results.find(REQUESTS[0]) is None


@pytest.mark.parametrize("other", [{"input": "something else"}, {"user_id": "u2"}, {"session_id": "s2"}])
def test_the_same_run_id_with_something_different_finds_nothing(other: dict[str, Any]) -> None:
    results = KeptResults()
    results.keep(REQUESTS[0], a_result())
    assert results.find(a_request(run_id="r0", **other)) is None


def test_of_too_many_the_oldest_are_dropped() -> None:
    results = KeptResults(most=3)
    for request in REQUESTS:
        results.keep(request, a_result())
    assert kept(results) == REQUESTS[2:]


def test_of_too_large_ones_the_oldest_are_dropped() -> None:
    results = KeptResults(most_bytes=25_000)
    for request in REQUESTS:
        results.keep(request, a_result("x" * 10_000))
    assert kept(results) == REQUESTS[3:]


def test_one_that_is_kept_again_is_the_newest_and_counted_once() -> None:
    results = KeptResults(most_bytes=25_000)
    for number in (0, 1, 0, 0, 2):
        results.keep(REQUESTS[number], a_result("x" * 10_000))
    assert kept(results) == [REQUESTS[0], REQUESTS[2]]


def test_what_was_dropped_takes_no_room() -> None:
    results = KeptResults(most=2, most_bytes=25_000)
    for request in REQUESTS:
        results.keep(request, a_result("x" * 10_000))
        results.drop(request)
    for request in REQUESTS[:2]:
        results.keep(request, a_result("x" * 10_000))
    assert kept(results) == REQUESTS[:2]


def test_after_the_stated_time_one_is_dropped_and_a_line_says_so() -> None:
    clock = Clock()
    results = KeptResults(kept_for=timedelta(hours=1), now=clock)
    results.keep(REQUESTS[0], a_result())
    clock.seconds = 1800
    results.keep(REQUESTS[1], a_result())
    clock.seconds = 3600
    assert kept(results) == REQUESTS[:2]
    clock.seconds = 3601
    with capture_logs() as logged:
        assert kept(results) == [REQUESTS[1]]
    assert [(event["event"], event["run_id"]) for event in logged] == [("kept_result_dropped", "r0")]


def test_neither_the_history_nor_the_journal_is_kept() -> None:
    """A session's history can have 16 MiB, and the journal holds the lane."""
    history = tuple(a_past_run(number) for number in range(3))
    turn = replace(a_turn(), history=history, steps=Steps(a_turn().session, Journal()))
    results = KeptResults()
    results.keep(REQUESTS[0], replace(a_result(), claim=a_claim(history=history), turn=turn))
    found = results.find(REQUESTS[0])
    assert isinstance(found, KeptResult)
    assert found.turn.history == found.claim.history == ()
    assert found.turn.steps is not turn.steps


@pytest.mark.parametrize(("attempts", "newest"), [(0, True), (2, True), (3, False)])
def test_steps_are_the_newest_unless_a_later_attempt_was_begun(attempts: int, *, newest: bool) -> None:
    assert KeptSteps.of(a_turn_of(attempt=2)).is_newest_in(a_claim(attempts=attempts)) is newest


def test_an_instant_attempt_that_is_not_recorded_was_begun_all_the_same() -> None:
    assert a_result(attempt=1).seen_in(a_claim(attempts=0)).attempts == 1


def test_a_result_whose_fields_hold_what_can_not_be_shown_is_kept() -> None:
    class Odd:
        @override
        def __repr__(self) -> str:
            raise RuntimeError

    results = KeptResults()
    results.keep(REQUESTS[0], a_result(messages=[{"role": Odd()}]))
    assert kept(results) == [REQUESTS[0]]
