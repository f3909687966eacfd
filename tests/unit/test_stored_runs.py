"""Stored runs: the layout that Agno 3 reads and writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from pydantic import JsonValue

from schemas.ids import SessionType, Target
from schemas.replies import RunStatus
from tests.unit.examples import a_request, a_turn, agent, nested, team
from tests.unit.strategies import json_values
from worker.errors import ModelFailed
from worker.executors.attempt import Outcome, failed
from worker.executors.json_values import as_json
from worker.executors.turn import MemberRun, Usage
from worker.replies.answers import Timing, finished
from worker.sessions.stored_runs import FinishedTurn, member_run_data, past_run, run_data, target_data

_TIMING = Timing(queued=1_900_000_000, started=1_900_000_001, ended=1_900_000_003)


def _stored(content: JsonValue = "Paris", outcome: Outcome | None = None, **fields: Any) -> dict[str, Any]:
    """The stored form of a request's run, of a team called Capital."""
    request, turn = a_request(**fields), a_turn(**fields)
    turn.usage = Usage(input_tokens=100, output_tokens=20, model_requests=1, tool_calls=0)
    reply = finished(request, turn, outcome or Outcome(RunStatus.COMPLETED, content, {}), number=4, timing=_TIMING)
    stored = run_data(request, reply, FinishedTurn("Capital", None, None))
    return dict(json.loads(json.dumps(stored)))


def _member(target: Target, **fields: Any) -> MemberRun:
    made: dict[str, Any] = {
        "run_id": "m1",
        "parent_run_id": "r1",
        "member": target,
        "name": target.id,
        "input": "find it",
        "created_at": 1_900_000_002,
        "content": "found",
        "status": RunStatus.COMPLETED,
    }
    return MemberRun(**made | fields)


def test_a_team_run_has_at_least_what_agno_needs() -> None:
    stored = _stored(user_id="u1")
    least: dict[str, Any] = {
        "run_id": "r1",
        "team_id": "t1",
        "team_name": "Capital",
        "session_id": "s1",
        "user_id": "u1",
        "input": {"input_content": "hello"},
        "content": "Paris",
        "content_type": "str",
        "status": "COMPLETED",
        "created_at": 1_900_000_001,
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Paris"}],
        "member_responses": [],
    }
    assert {name: stored.get(name) for name in least} == least


def test_a_team_run_has_no_key_agent_id_and_no_parent() -> None:
    assert not {"agent_id", "agent_name", "workflow_id", "parent_run_id"} & _stored().keys()


@pytest.mark.parametrize(("kind", "others"), [("agent", ["team", "workflow"]), ("workflow", ["agent", "team"])])
def test_another_kind_s_run_has_the_keys_of_its_own_kind_only(kind: str, others: list[str]) -> None:
    target: dict[str, Any] = {"team_id": ..., f"{kind}_id": "one"}
    stored = _stored(**target)
    assert (stored[f"{kind}_id"], stored[f"{kind}_name"]) == ("one", "Capital")
    assert not {f"{other}_id" for other in others} & stored.keys()


def test_a_run_holds_what_it_took_its_turn_number_and_its_attempt() -> None:
    stored = _stored()
    assert stored["metrics"] == {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, "duration": 2.0}
    assert (stored["turn"], stored["attempt"]) == (4, 1)


def test_the_request_s_metadata_is_kept_with_its_run() -> None:
    assert _stored(metadata={"channel": "web"})["metadata"] == {"channel": "web"}
    assert "metadata" not in _stored()


def test_json_content_is_stored_as_json_and_shown_as_its_text() -> None:
    stored = _stored({"city": "Paris"})
    assert stored["content"] == {"city": "Paris"}
    assert stored["content_type"] != "str"
    assert stored["messages"][-1] == {"role": "assistant", "content": '{"city":"Paris"}'}


def test_a_failed_run_is_stored_with_its_error_and_says_nothing_as_the_assistant() -> None:
    stored = _stored(outcome=failed(ModelFailed("the model is away", retryable=True)))
    assert (stored["status"], stored["content"], stored["content_type"]) == ("ERROR", None, "str")
    assert stored["error"] == {"code": "model_error", "message": "the model is away", "retryable": True}
    assert stored["messages"] == [{"role": "user", "content": "hello"}]
    assert "error" not in _stored()


def test_parts_are_stored_as_they_were_sent_and_their_text_as_the_message() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "binary", "media_type": "image/png", "data": "aGk="},
        {"type": "text", "text": "there"},
    ]
    stored = _stored(input=parts)
    assert stored["input"] == {"input_content": parts}
    assert stored["messages"][0] == {"role": "user", "content": "look\nthere"}


def test_what_jsonb_refuses_is_replaced() -> None:
    stored = _stored(input="a\x00b", metadata={"k\x00": "\x00"})
    assert "\\u0000" not in json.dumps(stored)
    assert stored["input"] == {"input_content": "a\ufffdb"}


def test_an_agent_member_s_run_has_its_agent_id_and_the_run_it_belongs_to() -> None:
    stored = member_run_data(a_request(user_id="u1"), _member(agent("finder")))
    expected = {
        "run_id": "m1",
        "parent_run_id": "r1",
        "agent_id": "finder",
        "agent_name": "finder",
        "session_id": "s1",
        "user_id": "u1",
        "input": {"input_content": "find it"},
        "content": "found",
        "content_type": "str",
        "status": "COMPLETED",
        "created_at": 1_900_000_002,
    }
    assert {name: stored.get(name) for name in expected} == expected
    assert "team_id" not in stored


def test_a_team_member_s_run_has_its_team_id_and_no_key_agent_id() -> None:
    stored = member_run_data(a_request(), _member(team("inner")))
    assert (stored["team_id"], stored["parent_run_id"]) == ("inner", "r1")
    assert "agent_id" not in stored


@pytest.mark.parametrize("status", [RunStatus.ERROR, RunStatus.CANCELLED])
def test_a_member_that_did_not_answer_says_nothing_as_the_assistant(status: RunStatus) -> None:
    stored = member_run_data(a_request(), _member(agent("finder"), content=None, status=status))
    assert (stored["status"], stored["content"]) == (status.value, None)
    assert [message["role"] for message in stored["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("model_name", "model"),
    [
        ("openai:gpt-5", {"id": "gpt-5", "name": "gpt-5", "provider": "openai"}),
        ("ollama:llama3.2:1b", {"id": "llama3.2:1b", "name": "llama3.2:1b", "provider": "ollama"}),
        (
            "bedrock:anthropic.claude-v1:0",
            {"id": "anthropic.claude-v1:0", "name": "anthropic.claude-v1:0", "provider": "bedrock"},
        ),
    ],
)
def test_the_session_s_row_says_which_team_and_model_it_is_of(model_name: str, model: dict[str, str]) -> None:
    data = target_data(team("capital"), "Capital", model_name)
    assert data == {"team_data": {"name": "Capital", "team_id": "capital", "model": model}}


@pytest.mark.parametrize("kind", list(SessionType))
def test_what_is_said_of_the_target_stands_in_the_column_of_its_kind(kind: SessionType) -> None:
    data = target_data(Target(type=kind, id="one"), "One", None)
    assert data == {f"{kind.value}_data": {"name": "One", f"{kind.value}_id": "one"}}


def test_the_deepest_answer_that_is_accepted_can_also_be_stored() -> None:
    """An answer that is let through and then can't be stored would fail the worker, and not the turn."""
    deepest = as_json(nested(100), what="the answer")
    assert _stored(deepest)["content"] == deepest
    assert member_run_data(a_request(), _member(agent("finder"), content=deepest))["content"] == deepest


@given(json_values())
def test_a_stored_run_is_read_back_as_it_was_asked_and_answered(content: JsonValue) -> None:
    content = as_json(content, what="the answer")
    run = past_run(_stored(content, input="what?"))
    assert (run.run_id, run.input, run.content, run.created_at) == ("r1", "what?", content, 1_900_000_001)


def test_a_run_of_parts_is_read_back_as_its_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "binary", "media_type": "a/b", "data": ""}]
    assert past_run(_stored(input=parts)).input == "a"
