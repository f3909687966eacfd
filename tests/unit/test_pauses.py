"""Pauses as values: what is waited for, what is decided, and who may go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.errors import ErrorCode
from schemas.replies import Approval
from schemas.requests import Decision, RunRequest
from tests.unit.examples import NOW, a_claim, a_request, a_session
from worker.decide import Execute, Refuse, decide
from worker.executors.asked import asked_again
from worker.executors.pauses import Origin, Pause, PauseRules, Pending, together
from worker.sessions.claim import Pauses

ORIGIN = Origin(run_id="r0", id_seed="seed", input="buy tea")


def waits(call_id: str, name: str = "") -> Pending:
    return Pending(name=name or f"approval@{call_id}#1", approval=Approval(tool_call_id=call_id, tool="pay"))


def yes(call_id: str) -> Decision:
    return Decision(tool_call_id=call_id, approved=True)


def test_calls_of_one_id_are_told_apart() -> None:
    found = together([waits("c", "ann/c"), waits("d"), waits("c", "bob/c"), waits("c", "cat/c")])
    assert [(one.name, one.approval.tool_call_id) for one in found] == [
        ("ann/c", "c"),
        ("approval@d#1", "d"),
        ("bob/c", "c#2"),
        ("cat/c", "c#3"),
    ]


def test_an_id_that_looks_like_another_one_s_second_is_told_apart_too() -> None:
    found = together([waits("c"), waits("c#2"), waits("c")])
    assert [one.approval.tool_call_id for one in found] == ["c", "c#2", "c#3"]


def test_decisions_are_kept_over_several_pauses_by_the_calls_names() -> None:
    first = Pause(origin=ORIGIN, pending=(waits("c", "one"), waits("d", "two")))
    second = Pause(origin=first.decided([yes("c")]), pending=(waits("c", "three"),))
    assert set(second.decided([yes("c")]).decisions) == {"one", "three"}
    assert first.unknown([yes("c"), yes("x")]) == ["x"]


def test_a_pause_is_the_same_when_it_is_read_again() -> None:
    pause = Pause(origin=ORIGIN.model_copy(update={"decisions": {"one": yes("c")}}), pending=(waits("d"),))
    assert Pause.model_validate_json(pause.model_dump_json()) == pause


def test_what_is_asked_again_is_what_was_asked_and_has_the_fingerprint_of_who_asks_now() -> None:
    request = a_request(continues="r0", decisions=[{"tool_call_id": "c", "approved": True}])
    again = asked_again(request, ORIGIN)
    assert (again.input, again.run_id, again.fingerprint) == ("buy tea", request.run_id, request.fingerprint)


def test_who_has_no_rules_has_the_defaults() -> None:
    assert PauseRules.of(None) == PauseRules.of(object()) == PauseRules("accept", 604_800.0)


PAUSED = Pauses(
    session_paused=True,
    pause=Pause(origin=ORIGIN, pending=(waits("c"),)),
    expires_at=NOW + timedelta(seconds=1),
)
CONTINUES = {"continues": "r0", "decisions": [{"tool_call_id": "c", "approved": True}]}


@pytest.mark.parametrize(
    ("asked", "pauses", "attempts", "code"),
    [
        (CONTINUES, PAUSED, 0, None),
        (CONTINUES, None, 0, ErrorCode.RUN_NOT_PAUSED),
        (CONTINUES, Pauses(session_paused=True), 0, ErrorCode.RUN_NOT_PAUSED),
        (CONTINUES, replace(PAUSED, expires_at=NOW), 0, ErrorCode.PAUSE_EXPIRED),
        (CONTINUES, replace(PAUSED, expires_at=NOW), 1, None),
        (CONTINUES, replace(PAUSED, expires_at=NOW, pause=None), 1, ErrorCode.PAUSE_EXPIRED),
        (CONTINUES | {"decisions": [{"tool_call_id": "x", "approved": False}]}, PAUSED, 0, ErrorCode.DECISION_UNKNOWN),
        ({}, PAUSED, 0, ErrorCode.SESSION_PAUSED),
        ({}, PAUSED, 1, None),
        ({}, Pauses(session_paused=False), 0, None),
    ],
    ids=[
        "paused",
        "a session that is not stored",
        "another run is paused",
        "too late",
        "begun in time",
        "dropped",
        "another call",
        "meanwhile",
        "begun before the pause",
        "nothing is paused",
    ],
)
def test_who_may_go_on(asked: dict[str, Any], pauses: Pauses | None, attempts: int, code: ErrorCode | None) -> None:
    claim = replace(a_claim(session=a_session(), attempts=attempts), pauses=pauses)
    decision = decide(a_request(**asked), claim, target_known=True)
    assert (decision.code if isinstance(decision, Refuse) else None) == code
    assert code is not None or decision == Execute()


@pytest.mark.parametrize(
    "wrong",
    [
        {"continues": "r0"},
        {"continues": "r0", "decisions": []},
        {"input": "x", "decisions": [{"tool_call_id": "c", "approved": True}]},
        {"continues": "r0", "decisions": [{"tool_call_id": "c", "approved": True}] * 2},
        {"continues": "r0", "decisions": [{"tool_call_id": "c", "approved": "yes"}]},
        {"continues": "r0", "decisions": [{"tool_call_id": "c", "approved": True, "arguments": {}}]},
        {"continues": "r0", "decisions": [{"tool_call_id": "", "approved": True}]},
        {},
    ],
)
def test_what_is_no_continuation_is_no_request(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunRequest.model_validate({"run_id": "r1", "team_id": "t1", **wrong})
