"""What is done with a claimed request: a table of cases, and what goes before what."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from schemas.errors import ErrorCode
from schemas.ids import SessionType, Target
from tests.unit.examples import NOW, a_claim, a_receipt, a_request, a_session, agent
from worker.decide import Execute, Refuse, Replay, decide

_REPLY = b'{"status":"COMPLETED"}'


@dataclass
class Case:
    """A request, what its claim found, and the code of the refusal; None: it is executed."""

    name: str
    code: ErrorCode | None
    asked: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] | None = None
    run_exists: bool = False
    known: bool = True
    attempts: int = 0
    busy: bool = False


_CASES = [
    Case("a new session", None),
    Case("the next turn of a session", None, session={}),
    Case("its owner", None, {"user_id": "u1"}, session={"user_id": "u1"}),
    Case("a new session with a user", None, {"user_id": "u1"}),
    Case("an agent's session", None, {"agent_id": "t1"}, session={"session_type": SessionType.AGENT}),
    Case("a workflow's session", None, {"workflow_id": "t1"}, session={"session_type": "workflow"}),
    Case("another user", ErrorCode.SESSION_FORBIDDEN, {"user_id": "u2"}, session={"user_id": "u1"}),
    Case("nobody, of a user's session", ErrorCode.SESSION_FORBIDDEN, session={"user_id": "u1"}),
    Case("a user, of nobody's session", ErrorCode.SESSION_FORBIDDEN, {"user_id": "u1"}, session={"user_id": None}),
    Case("case matters in user ids", ErrorCode.SESSION_FORBIDDEN, {"user_id": "U1"}, session={"user_id": "u1"}),
    Case("another team", ErrorCode.SESSION_TARGET_MISMATCH, session={"target_id": "t2"}),
    Case("an agent of that name", ErrorCode.SESSION_TARGET_MISMATCH, session={"session_type": SessionType.AGENT}),
    Case("a session without a target", ErrorCode.SESSION_TARGET_MISMATCH, session={"target_id": None}),
    Case("a type of another program", ErrorCode.SESSION_TARGET_MISMATCH, session={"session_type": "TEAM"}),
    Case("a run without a receipt", ErrorCode.RUN_ID_CONFLICT, run_exists=True),
    Case("a run without a receipt, its session", ErrorCode.RUN_ID_CONFLICT, run_exists=True, session={}),
    Case("no such team", ErrorCode.UNKNOWN_TARGET, known=False),
    Case("no such team, its session", ErrorCode.UNKNOWN_TARGET, session={}, known=False),
    Case("before the deadline", None, {"deadline": (NOW + timedelta(microseconds=1)).isoformat()}),
    Case("after the deadline, started before", None, {"deadline": NOW.isoformat()}, attempts=1),
    Case("at the deadline", ErrorCode.DEADLINE_EXCEEDED, {"deadline": NOW.isoformat()}),
    Case("after the deadline", ErrorCode.DEADLINE_EXCEEDED, {"deadline": "2030-01-31T12:59:59+01:00"}),
    Case("reject, not busy", None, {"on_busy": "reject"}),
    Case("reject, busy", ErrorCode.SESSION_BUSY, {"on_busy": "reject"}, busy=True),
    Case("reject, busy, started before", None, {"on_busy": "reject"}, busy=True, attempts=1),
    Case("interrupt, not busy", None, {"on_busy": "interrupt"}),
    Case("interrupt, busy", None, {"on_busy": "interrupt"}, busy=True),
    Case("enqueue, busy", None, {}, busy=True),
    Case("coalesce, busy", None, {"on_busy": "coalesce"}, busy=True),
    Case("stream", None, {"stream": True}),
]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_a_claimed_request_is_executed_or_refused(case: Case) -> None:
    session = None if case.session is None else a_session(**case.session)
    claim = a_claim(session=session, run_exists=case.run_exists, attempts=case.attempts)
    decision = decide(a_request(**case.asked), claim, target_known=case.known, busy=case.busy)
    if case.code is None:
        assert decision == Execute()
    else:
        assert isinstance(decision, Refuse)
        assert decision.code is case.code
        assert decision.message


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"session": a_session(user_id="somebody else")},
        {"session": a_session(target_id="other")},
        {"run_exists": True},
        {"database_time": NOW + timedelta(days=400)},
    ],
    ids=["nothing", "owner", "target", "run stored", "deadline passed"],
)
@pytest.mark.parametrize("known", [True, False])
def test_the_same_request_again_gets_its_stored_reply_whatever_has_changed_since(
    changed: dict[str, Any],
    known: bool,  # noqa: FBT001 - a case
) -> None:
    request = a_request(deadline=NOW.isoformat(), stream=True)
    claim = a_claim(receipt=a_receipt(request, reply=_REPLY), **changed)
    assert decide(request, claim, target_known=known) == Replay(_REPLY)


@pytest.mark.parametrize(
    "kept",
    [
        {"session_id": "s2"},
        {"user_id": "u1"},
        {"target": Target(type=SessionType.TEAM, id="t2")},
        {"target": agent("t1")},
        {"fingerprint": a_request(input="other").fingerprint},
        {"fingerprint": a_request(stream=True).fingerprint},
        {"fingerprint": b""},
    ],
    ids=["session", "user", "team", "kind", "input", "stream", "no hash"],
)
@pytest.mark.parametrize("known", [True, False])
def test_the_same_run_id_with_anything_different_is_a_conflict_that_shows_nothing(
    kept: dict[str, Any],
    known: bool,  # noqa: FBT001 - a case
) -> None:
    request = a_request()
    claim = a_claim(receipt=a_receipt(request, **kept), session=a_session(user_id="u7", target_id="t7"))
    decision = decide(request, claim, target_known=known)
    plain = decide(request, a_claim(run_exists=True), target_known=known)
    assert isinstance(decision, Refuse)
    assert decision.code is ErrorCode.RUN_ID_CONFLICT
    assert decision == plain, "the refusal must not depend on what the other run was"


def test_nothing_of_another_user_s_session_is_told_whatever_else_is_wrong() -> None:
    theirs = a_session(user_id="secret-owner", target_id="secret-team", session_type=SessionType.AGENT)
    asked = product(
        [None, "u2"],
        ["t1", "secret-team"],
        [None, "2000-01-01T00:00:00Z"],
        ["enqueue", "interrupt"],
        [False, True],
        [False, True],
    )
    decisions = {
        decide(
            a_request(user_id=user, team_id=team_id, deadline=deadline, on_busy=busy, stream=stream),
            a_claim(session=theirs),
            target_known=known,
        )
        for user, team_id, deadline, busy, stream, known in asked
    }
    (decision,) = decisions
    assert isinstance(decision, Refuse)
    assert decision.code is ErrorCode.SESSION_FORBIDDEN
    assert "secret" not in decision.message


def test_a_target_that_no_worker_knows_is_not_told_before_the_session_s_target_matches() -> None:
    decision = decide(a_request(team_id="nope"), a_claim(session=a_session()), target_known=False)
    assert isinstance(decision, Refuse)
    assert decision.code is ErrorCode.SESSION_TARGET_MISMATCH


@pytest.mark.parametrize("case", [case for case in _CASES if case.code is not None], ids=lambda case: case.name)
def test_every_refusal_is_stored_but_of_a_run_id_that_somebody_else_s_run_has(case: Case) -> None:
    session = None if case.session is None else a_session(**case.session)
    claim = a_claim(session=session, run_exists=case.run_exists)
    decision = decide(a_request(**case.asked), claim, target_known=case.known, busy=case.busy)
    assert isinstance(decision, Refuse)
    assert decision.stored is (decision.code is not ErrorCode.RUN_ID_CONFLICT)


def test_an_unknown_target_is_named() -> None:
    decision = decide(a_request(team_id=..., workflow_id="nightly"), a_claim(), target_known=False)
    assert isinstance(decision, Refuse)
    assert "workflow 'nightly'" in decision.message
