"""The checks of cancelled, interrupted and refused runs: each finds what is planted for it, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checks import CHECKS, violations
from tests.chaos.conversation import conversations
from tests.chaos.evidence import Asked, Call, Cancel, Evidence, Reply, Upset, UpsetTime

WAITING, RUNNING, NORMAL, INTERRUPTING, REFUSED, LATE, BEFORE = (f"s/{number}" for number in range(7))
"""In the order in which they were asked for; the first two were cancelled."""
INTERRUPTED = "s/x"


def body(run_id: str, status: str, *, turn: int | None, completed_at: int = 100, code: str | None = None) -> bytes:
    error = None if code is None else {"code": code, "message": "for a reason"}
    reply = {
        "run_id": run_id,
        "status": status,
        "turn": turn,
        "content": "text" if status == "COMPLETED" else None,
        "completed_at": completed_at,
        "error": error,
    }
    return json.dumps(reply).encode()


BODIES = {
    WAITING: body(WAITING, "CANCELLED", turn=None, code="cancelled"),
    RUNNING: body(RUNNING, "CANCELLED", turn=1, code="cancelled"),
    NORMAL: body(NORMAL, "COMPLETED", turn=2),
    INTERRUPTED: body(INTERRUPTED, "CANCELLED", turn=3, code="cancelled"),
    INTERRUPTING: body(INTERRUPTING, "COMPLETED", turn=4),
    REFUSED: body(REFUSED, "REJECTED", turn=None, code="session_busy"),
    LATE: body(LATE, "COMPLETED", turn=5, completed_at=100),
    BEFORE: body(BEFORE, "CANCELLED", turn=None, code="cancelled"),
}
STORED = [RUNNING, NORMAL, INTERRUPTED, INTERRUPTING, LATE]
GOOD = Evidence(
    published={"s": list(BODIES)},
    # What is refused for a busy session is answered before what it came behind.
    replies=[Reply(REFUSED, BODIES[REFUSED]), *(Reply(one, text) for one, text in BODIES.items() if one != REFUSED)],
    asked={
        **dict.fromkeys(BODIES, Asked(at=90.0)),
        INTERRUPTING: Asked(at=90.0, on_busy="interrupt"),
        REFUSED: Asked(at=90.0, on_busy="reject"),
        BEFORE: Asked(at=99.0),
    },
    cancels=[
        *(Cancel(run_id) for run_id in (WAITING, RUNNING, LATE)),
        Cancel(BEFORE, before=True),
        Cancel(NORMAL, by_its_user=False),
    ],
    cancelled={WAITING: 99.5, RUNNING: 99.6, INTERRUPTED: 99.7, BEFORE: 95.0},
    calls=[Call(RUNNING, "first", 98.0, worker=1)],
    stored={"s": STORED},
    stored_times=dict.fromkeys(STORED, 1),
    receipts=BODIES,
)


def answered(run_id: str, status: str, *, evidence: Evidence = GOOD, **how: Any) -> Evidence:
    """The evidence with another reply of a run, and with what is stored to match."""
    text = body(run_id, status, **how)
    stored = [one for one in BODIES if (one in STORED if one != run_id else how["turn"] is not None)]
    return replace(
        evidence,
        replies=[Reply(one.run_id, text) if one.run_id == run_id else one for one in evidence.replies],
        receipts=BODIES | {run_id: text},
        stored={"s": stored},
    )


def called(run_id: str, at: float) -> Evidence:
    return replace(GOOD, calls=[*GOOD.calls, Call(run_id, "last", at, worker=1)])


def test_nothing_is_found_where_all_is_well() -> None:
    assert violations(GOOD) == {name: [] for name in CHECKS}


def test_each_kind_of_conversation_is_counted() -> None:
    assert conversations(GOOD) == {
        "cancelled_before": 1,
        "cancelled_waiting": 1,
        "cancelled_running": 1,
        "cancelled_too_late": 1,
        "interrupted_waiting": 0,
        "interrupted_running": 1,
        "interrupting": 1,
        "refused_as_busy": 1,
    }


@pytest.mark.parametrize(
    ("check", "evidence", "run_id", "words"),
    [
        (
            "cancels_ignored",
            answered(RUNNING, "COMPLETED", turn=1, completed_at=104),
            RUNNING,
            "COMPLETED, 4.4 s after it was cancelled",
        ),
        (
            "cancels_ignored",
            answered(RUNNING, "ERROR", turn=1, completed_at=104, code="step_uncertain"),
            RUNNING,
            "ERROR, 4.4 s after",
        ),
        ("cancels_ignored", called(RUNNING, 104.0), RUNNING, "its step last 4.4 s after"),
        ("cancels_ignored", called(WAITING, 104.0), WAITING, "its step last 4.5 s after"),
        (
            "cancels_ignored",
            answered(BEFORE, "COMPLETED", turn=6),
            BEFORE,
            "before it was asked for, and is COMPLETED",
        ),
        ("cancels_ignored", answered(BEFORE, "CANCELLED", turn=6, code="cancelled"), BEFORE, "and was started"),
        (
            "interrupts_ignored",
            answered(INTERRUPTED, "COMPLETED", turn=3, completed_at=110),
            INTERRUPTED,
            "10.3 s after",
        ),
        ("interrupts_ignored", called(INTERRUPTED, 110.0), INTERRUPTED, "its step last 10.3 s after"),
        (
            "cancelled_unasked",
            answered(LATE, "CANCELLED", turn=5, code="cancelled", evidence=replace(GOOD, cancels=GOOD.cancels[:2])),
            LATE,
            "nobody asked for that",
        ),
        ("unstarted_executed", replace(GOOD, recorded={(WAITING, "first"): 99.0}), WAITING, "its step first is"),
        ("lost", answered(NORMAL, "REJECTED", turn=None, code="session_busy"), NORMAL, "refused: session_busy"),
        ("lost", answered(REFUSED, "REJECTED", turn=None, code="unknown_target"), REFUSED, "refused: unknown_target"),
        (
            "lost",
            replace(GOOD, replies=[one for one in GOOD.replies if one.run_id != INTERRUPTING]),
            INTERRUPTING,
            "no reply",
        ),
    ],
)
def test_a_planted_violation_is_found_by_its_check(check: str, evidence: Evidence, run_id: str, words: str) -> None:
    found = violations(evidence)
    mine = [one for one in found[check] if one.run_id == run_id]
    assert any(words in one.what for one in mine), found
    # The run that was cancelled before it was asked for is missed by the check of those that nobody has cancelled.
    assert {name for name, one in found.items() if one} <= {check, "cancelled_unasked"}


def test_a_refusal_with_nothing_before_it_is_a_lost_request() -> None:
    first = replace(GOOD, published={"s": [REFUSED, *(one for one in BODIES if one != REFUSED)]})
    assert [one.run_id for one in violations(first)["lost"]] == [REFUSED]


def test_a_run_that_was_never_started_is_not_among_the_session_s_runs() -> None:
    found = violations(replace(GOOD, stored={"s": [WAITING, *STORED]}, stored_times={}))
    assert [one.run_id for one in found["unstarted_executed"]] == [WAITING]


@pytest.mark.parametrize("kind", [Upset.FREEZE, Upset.SLOW, Upset.POSTGRES])
def test_who_can_not_hear_of_a_cancellation_may_go_on(kind: Upset) -> None:
    went_on = replace(
        answered(RUNNING, "COMPLETED", turn=1, completed_at=110),
        calls=[Call(RUNNING, "last", 109.0, worker=1)],
    )
    assert violations(went_on)["cancels_ignored"]
    excused = replace(went_on, upsets=[UpsetTime(kind, 101.0, 102.0)])
    assert violations(excused)["cancels_ignored"] == []
    elsewhen = replace(went_on, upsets=[UpsetTime(kind, 95.0, 99.0)])
    assert violations(elsewhen)["cancels_ignored"]


@pytest.mark.parametrize(("completed_at", "found"), [(101, 0), (104, 1)])
def test_what_is_finished_a_moment_after_its_cancellation_was_finished_before(completed_at: int, found: int) -> None:
    evidence = answered(RUNNING, "COMPLETED", turn=1, completed_at=completed_at)
    assert len(violations(evidence)["cancels_ignored"]) == found


def test_a_cancelled_turn_may_have_counted_itself_and_no_other_may() -> None:
    counted = replace(GOOD, states={"s": {"count": 5}})
    assert violations(counted)["duplicated"] == []
    assert violations(replace(counted, states={"s": {"count": 2}}))["duplicated"]
    assert violations(replace(counted, states={"s": {"count": 6}}))["duplicated"]
