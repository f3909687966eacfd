"""The checks of `deploy/chaos`: each finds what is planted for it, and nothing where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import JsonValue

from tests.chaos.checks import CHECKS, calls_of_thawed_workers, error_codes, violations
from tests.chaos.evidence import Call, Evidence, Freeze, Reply
from tests.chaos.script import BEGUN

_TEAM_CALLS = [
    ("leader/1", 10.0),
    ("buyer/1", 11.0),
    ("reader/1", 11.1),
    ("buyer/pay", 12.0),
    ("buyer/2", 13.0),
    ("leader/2", 14.0),
]


def body(run_id: str, *, turn: int | None, count: int | None = None, code: str | None = None, **more: Any) -> bytes:
    """A reply: of a completed turn, or with an error code."""
    reply: dict[str, Any] = {
        "run_id": run_id,
        "status": "COMPLETED" if code is None else "ERROR",
        "turn": turn,
        "content": {"run": run_id, "count": turn if count is None else count} if code is None else None,
        "error": None if code is None else {"code": code, "message": "for a reason"},
    }
    return json.dumps(reply | more).encode()


def calls(*made: tuple[str, float], run_id: str = "b/1") -> list[Call]:
    return [Call(run_id, step, began, worker=1) for step, began in made]


BODIES = {
    "a/1": body("a/1", turn=1),
    "a/2": body("a/2", turn=2),
    "a/3": body("a/3", turn=3, code="step_uncertain"),
    "a/4": body("a/4", turn=4, count=3),
    "b/1": body("b/1", turn=1),
}
GOOD = Evidence(
    published={"a": ["a/1", "a/2", "a/3", "a/4"], "b": ["b/1"]},
    # A redelivery may be answered again.
    replies=[*(Reply(run_id, one) for run_id, one in BODIES.items()), Reply("a/2", BODIES["a/2"])],
    calls=calls(*_TEAM_CALLS),
    stored={"a": ["a/1", "a/2", "a/3", "a/4"], "b": ["b/1"]},
    stored_times=dict.fromkeys(BODIES, 1),
    receipts=BODIES,
    states={"a": {"count": 3}, "b": {"count": 1, "paid": 1}},
    recorded={("b/1", step): began + 0.5 for step, began in _TEAM_CALLS},
)


def answered(*replies: tuple[str, bytes]) -> Evidence:
    """The good evidence with other replies, and with receipts to match."""
    return replace(
        GOOD,
        replies=[Reply(run_id, one) for run_id, one in replies],
        receipts=dict(replies),
    )


def with_reply(run_id: str, reply: bytes) -> Evidence:
    return answered(*(BODIES | {run_id: reply}).items())


def called(*more: tuple[str, float], recorded: Mapping[tuple[str, str], float] | None = None) -> Evidence:
    """The good evidence with calls added; without the journal's own word, unless it is given."""
    return replace(GOOD, calls=[*GOOD.calls, *calls(*more)], recorded=recorded or {})


def stored(**sessions: list[str]) -> Evidence:
    return replace(GOOD, stored={**GOOD.stored, **sessions})


def state(session_id: str, **keys: JsonValue) -> Evidence:
    return replace(GOOD, states={**GOOD.states, session_id: keys})


def test_nothing_is_found_where_all_is_well() -> None:
    assert violations(GOOD) == {name: [] for name in CHECKS}


def test_the_contracts_five_come_first() -> None:
    assert list(CHECKS)[:5] == ["lost", "duplicated", "reordered", "replies_differ", "recorded_steps_repeated"]


def without_receipt(run_id: str) -> Evidence:
    return replace(GOOD, receipts={one: receipt for one, receipt in GOOD.receipts.items() if one != run_id})


IN_WRONG_ORDER = [(run_id, BODIES[run_id]) for run_id in ("a/1", "a/3", "a/2", "a/4", "b/1")]


@pytest.mark.parametrize(
    ("check", "evidence", "session_id", "words"),
    [
        (
            "lost",
            replace(GOOD, replies=[one for one in GOOD.replies if one.run_id != "b/1"], states={}),
            "b",
            "no reply",
        ),
        ("lost", stored(b=[]), "b", "not among the session's runs"),
        ("lost", without_receipt("b/1"), "b", "no receipt"),
        ("lost", replace(GOOD, unanswered={"a/2": 1}), "a", "1 of its publishes"),
        ("lost", replace(GOOD, left={"requests.3": 2}), "?", "2 messages are left in requests.3"),
        (
            "lost",
            replace(
                with_reply("a/3", body("a/3", turn=None, code="conflict", status="REJECTED")),
                stored={**GOOD.stored, "a": ["a/1", "a/2", "a/4"]},
            ),
            "a",
            "refused: conflict",
        ),
        ("duplicated", replace(GOOD, stored_times={**GOOD.stored_times, "a/2": 2}), "a", "stored 2 times"),
        ("duplicated", with_reply("a/2", body("a/2", turn=1, count=2)), "a", "turn 1, and so is a/1"),
        ("duplicated", with_reply("a/2", body("a/2", turn=2, count=3)), "a", "number 3, and 2 have"),
        ("duplicated", state("a", count=4), "a", "count = 4, and 3 turns"),
        ("duplicated", state("b", count=1, paid=2), "b", "paid = 2, and 1 turns"),
        ("reordered", stored(a=["a/2", "a/1", "a/3", "a/4"]), "a", "a/2: it was stored where a/1"),
        ("reordered", answered(*IN_WRONG_ORDER), "a", "a/3: it was answered where a/2"),
        ("reordered", with_reply("a/3", body("a/3", turn=5, code="step_uncertain")), "a", "a/4: it is turn 4, and a/3"),
        ("replies_differ", replace(GOOD, replies=[*GOOD.replies, Reply("b/1", b"{}")]), "b", "2 different replies"),
        (
            "replies_differ",
            replace(GOOD, receipts={**GOOD.receipts, "b/1": b"{}"}),
            "b",
            "not the stored",
        ),
        ("replies_differ", with_reply("b/1", body("b/1", turn=1, content={"run": "a/1", "count": 1})), "b", "to a/1"),
        ("replies_differ", replace(GOOD, replies=[*GOOD.replies, Reply("c/1", BODIES["b/1"])]), "?", "nobody asked"),
        ("recorded_steps_repeated", called(("leader/1", 11.05)), "b", "leader/1 was called 0.050 s after"),
        ("recorded_steps_repeated", called(("buyer/1", 14.5)), "b", "buyer/1 was called 2.500 s after"),
        (
            "recorded_steps_repeated",
            called(("leader/2", 14.7), recorded={("b/1", "leader/2"): 14.5}),
            "b",
            "leader/2 was called 0.200 s after",
        ),
        ("stray_unlocks", replace(GOOD, stray_unlocks=1), "?", "did not have"),
        ("unrepeatable_steps_repeated", called(("buyer/pay", 12.5)), "b", "buyer/pay, which is not repeatable"),
        ("unexpected_errors", with_reply("a/3", body("a/3", turn=3, code="model_error")), "a", "failed: model_error"),
    ],
)
def test_a_planted_violation_is_found_by_its_check_and_no_other(
    check: str, evidence: Evidence, session_id: str, words: str
) -> None:
    found = violations(evidence)
    assert {name: len(one) for name, one in found.items() if one} == {check: 1}
    violation = found[check][0]
    assert violation.session_id == session_id
    assert words in f"{violation.run_id}: {violation.what}"


@pytest.mark.parametrize(
    "evidence",
    [
        called(("leader/2", 14.5)),
        called(("buyer/1", 11.9), ("reader/1", 13.5)),
        called((BEGUN, 9.0), (BEGUN, 9.5)),
        with_reply("a/3", body("a/3", turn=3, code="attempts_exhausted")),
    ],
    ids=["the last step unrecorded", "members side by side", "what is no step", "poison"],
)
def test_what_a_crash_may_lead_to_is_no_violation(evidence: Evidence) -> None:
    assert violations(evidence) == {name: [] for name in CHECKS}


FROZEN = Freeze(1, began=13.2, ended=30.0)
"""Before the last step was recorded, by another worker."""


@pytest.mark.parametrize(
    ("freeze", "began", "thawed"),
    [
        (FROZEN, 30.1, 1),
        (FROZEN, 31.1, 0),
        (replace(FROZEN, worker=2), 30.1, 0),
        (replace(FROZEN, began=14.7), 30.1, 0),
    ],
    ids=["just thawed", "long after", "another worker", "frozen after the record"],
)
def test_a_call_that_a_frozen_worker_was_about_to_make_is_counted_apart(
    freeze: Freeze, began: float, thawed: int
) -> None:
    evidence = replace(called(("leader/2", began), recorded={("b/1", "leader/2"): 14.5}), freezes=[freeze])
    assert calls_of_thawed_workers(evidence) == thawed
    assert len(violations(evidence)["recorded_steps_repeated"]) == 1 - thawed


def test_errors_are_counted_by_their_codes() -> None:
    assert error_codes(GOOD) == {"step_uncertain": 1}
