"""Replies: the fields that the contract names, and bytes that are always JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from schemas.errors import ErrorCode
from schemas.ids import Target
from schemas.replies import RunReply, RunStatus
from tests.unit.examples import a_request, a_turn, agent, nested, team
from tests.unit.strategies import any_text, json_values
from worker.errors import ExecutorFailed, ModelFailed
from worker.executors.attempt import Outcome, failed
from worker.executors.json_values import clean
from worker.executors.turn import MemberRun, Turn, Usage
from worker.replies.answers import Timing, body_of, finished, rejected

_TIMING = Timing(queued=1_900_000_000.25, started=1_900_000_001.0, ended=1_900_000_003.5)
_FIELDS = {
    *("run_id", "session_id", "session_type", "team_id", "agent_id", "workflow_id", "user_id", "status", "content"),
    *("member_responses", "turn", "attempt", "metrics", "error", "created_at", "completed_at"),
}
_METRICS = {
    *("input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls", "duration", "queue_time"),
}


def _completed(content: JsonValue) -> Outcome:
    return Outcome(RunStatus.COMPLETED, content, {})


def _member(target: Target, content: JsonValue = "x", status: RunStatus = RunStatus.COMPLETED) -> MemberRun:
    return MemberRun("m1", "r1", target, target.id, "task", 0, content, status)


def _parsed(reply: RunReply) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    parsed = json.loads(body_of(reply).decode("utf-8"), parse_constant=refuse)
    assert isinstance(parsed, dict)
    return parsed


def test_a_completed_run_is_answered_with_every_field_of_the_contract() -> None:
    request = a_request(user_id="u1")
    turn = a_turn(user_id="u1")
    turn.attempt = 2
    turn.usage = Usage(input_tokens=100, output_tokens=20, model_requests=3, tool_calls=1)
    turn.member_runs = [_member(agent("finder")), _member(team("inner"), {"a": 1}, RunStatus.ERROR)]
    reply = _parsed(finished(request, turn, _completed("Paris"), number=7, timing=_TIMING))
    assert reply == {
        "run_id": "r1",
        "session_id": "s1",
        "session_type": "team",
        "team_id": "t1",
        "agent_id": None,
        "workflow_id": None,
        "user_id": "u1",
        "status": "COMPLETED",
        "content": "Paris",
        "member_responses": [
            {"member_id": "finder", "content": "x", "status": "COMPLETED"},
            {"member_id": "inner", "content": {"a": 1}, "status": "ERROR"},
        ],
        "turn": 7,
        "attempt": 2,
        "metrics": {
            "input_tokens": 100,
            "output_tokens": 20,
            "total_tokens": 120,
            "model_requests": 3,
            "tool_calls": 1,
            "duration": 2.5,
            "queue_time": 0.75,
        },
        "error": None,
        "created_at": 1_900_000_001,
        "completed_at": 1_900_000_003,
    }
    assert reply.keys() == _FIELDS
    assert reply["metrics"].keys() == _METRICS


@pytest.mark.parametrize("kind", ["team", "agent", "workflow"])
def test_a_reply_names_its_target_by_the_field_of_its_kind(kind: str) -> None:
    request = a_request(**{"team_id": ..., f"{kind}_id": "one"})
    reply = _parsed(finished(request, a_turn(), _completed("x"), number=1, timing=_TIMING))
    named = {name: reply[name] for name in ("team_id", "agent_id", "workflow_id")}
    assert reply["session_type"] == kind
    assert {name: value for name, value in named.items() if value is not None} == {f"{kind}_id": "one"}


def test_a_failed_run_is_an_error_with_a_code_and_without_an_answer() -> None:
    outcome = failed(ModelFailed("the model answered with HTTP status 429", retryable=True))
    reply = _parsed(finished(a_request(), a_turn(), outcome, number=2, timing=_TIMING))
    assert (reply["status"], reply["content"], reply["turn"]) == ("ERROR", None, 2)
    assert reply["error"] == {
        "code": "model_error",
        "message": "the model answered with HTTP status 429",
        "retryable": True,
    }


def test_a_refused_request_is_rejected_without_a_turn_number() -> None:
    reply = _parsed(rejected(a_request(), ErrorCode.UNKNOWN_TARGET, "no team 't1'", now=1_900_000_000.9))
    assert reply.keys() == _FIELDS
    assert (reply["status"], reply["turn"], reply["content"], reply["attempt"]) == ("REJECTED", None, None, 1)
    assert reply["error"] == {"code": "unknown_target", "message": "no team 't1'", "retryable": False}
    assert (reply["created_at"], reply["completed_at"]) == (1_900_000_000, 1_900_000_000)
    assert set(reply["metrics"].values()) == {0}


def test_a_refusal_can_be_worth_another_try() -> None:
    reply = rejected(a_request(), ErrorCode.DEADLINE_EXCEEDED, "late", now=0, retryable=True)
    assert _parsed(reply)["error"]["retryable"] is True


def test_a_clock_that_went_back_makes_no_negative_times() -> None:
    timing = Timing(queued=10.0, started=9.0, ended=8.0)
    metrics = finished(a_request(), a_turn(), _completed("x"), number=1, timing=timing).metrics
    assert metrics.queue_time == 0
    assert metrics.duration == 0


def test_the_same_answer_is_the_same_bytes() -> None:
    def body() -> bytes:
        return body_of(finished(a_request(), a_turn(), _completed({"b": 1, "a": 2}), number=1, timing=_TIMING))

    assert body() == body()


@pytest.mark.parametrize("content", [None, "", "text", 0, False, 10**900, 1e300, [], {}, nested(100), "\u2028é😀"])
def test_any_answer_that_is_json_is_in_the_reply_as_it_is(content: JsonValue) -> None:
    reply = _parsed(finished(a_request(), a_turn(), _completed(content), number=1, timing=_TIMING))
    assert reply["content"] == content
    assert type(reply["content"]) is type(content)


_times = st.builds(Timing, queued=st.floats(0, 4e9), started=st.floats(0, 4e9), ended=st.floats(0, 8e9))


@given(json_values(any_text), any_text, any_text, st.integers(0, 10**12), _times)
@example("\x00\ud800", "\ud800", "\x00", 0, _TIMING)
def test_the_bytes_of_a_reply_are_always_json(
    content: JsonValue, said: str, message: str, tokens: int, timing: Timing
) -> None:
    turn = a_turn()
    turn.usage.input_tokens = tokens
    turn.member_runs = [_member(agent("finder"), said)]
    outcomes = [_completed(clean(content)), failed(ExecutorFailed(message))]
    for outcome in outcomes:
        reply = finished(a_request(), turn, outcome, number=1, timing=timing)
        parsed = _parsed(reply)
        assert parsed["content"] == outcome.content
        assert parsed["member_responses"][0]["content"] == clean(said)
        assert RunReply.model_validate_json(body_of(reply)) == reply
    refused = _parsed(rejected(a_request(), ErrorCode.UNKNOWN_TARGET, message, now=timing.started))
    assert refused["error"]["message"] == clean(message)


def test_a_reply_of_a_later_version_can_be_read_too() -> None:
    reply = rejected(a_request(), ErrorCode.UNKNOWN_TARGET, "no", now=0)
    later = json.loads(body_of(reply)) | {"a_field_of_tomorrow": 1}
    assert RunReply.model_validate(later) == reply


def _turn_with(content: JsonValue) -> Turn:
    turn = a_turn()
    turn.member_runs = [_member(agent("finder"), content)]
    return turn


def test_a_member_s_deepest_answer_fits_into_the_reply() -> None:
    deepest = nested(100)
    reply = _parsed(finished(a_request(), _turn_with(deepest), _completed("x"), number=1, timing=_TIMING))
    assert reply["member_responses"][0]["content"] == deepest
