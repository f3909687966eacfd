"""A new turn: given everything of its own, the request's state laid over the stored one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.examples import a_past_run, a_request, a_session, context_of
from worker.executors.attempt import new_turn
from worker.executors.turn import Turn


def test_a_turn_says_what_was_asked_and_by_whom() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = a_request(user_id="u1", input=parts)
    turn = new_turn(request, a_session(), context_of(a_past_run(1), a_past_run(2)), attempt=3)
    assert (turn.run_id, turn.session_id, turn.user_id, turn.attempt) == ("r1", "s1", "u1", 3)
    assert turn.input == "one\ntwo"
    assert turn.parts == request.input
    assert [run.run_id for run in turn.history] == ["past-1", "past-2"]


def test_the_request_s_state_is_laid_over_the_stored_one_key_by_key() -> None:
    stored = a_session(session_state={"a": 1, "b": {"x": 1, "y": 1}, "c": 3})
    turn = new_turn(a_request(session_state={"b": {"x": 2}, "c": None, "d": 4}), stored, context_of(), attempt=1)
    assert turn.session_state == {"a": 1, "b": {"x": 2}, "c": None, "d": 4}


def test_the_request_s_metadata_is_laid_over_the_session_s() -> None:
    turn = new_turn(
        a_request(metadata={"channel": "mail"}),
        a_session(metadata={"channel": "web", "lang": "de"}),
        context_of(),
        attempt=1,
    )
    assert turn.metadata == {"channel": "mail", "lang": "de"}


def test_without_a_session_the_turn_has_what_the_request_brings() -> None:
    turn = new_turn(a_request(session_state={"a": 1}, metadata={"m": 1}), None, context_of(), attempt=1)
    assert (turn.session_state, turn.metadata, turn.history) == ({"a": 1}, {"m": 1}, ())


def _changes_state(turn: Turn) -> None:
    turn.session_state["new"] = True
    deep: Any = turn.session_state
    deep["asked"]["list"].append("changed")
    deep["stored"]["list"].append("changed")


def _changes_metadata(turn: Turn) -> None:
    deep: Any = turn.metadata
    deep["asked"]["list"].append("changed")
    deep["stored"]["list"].append("changed")
    turn.metadata.clear()


def _changes_parts(turn: Turn) -> None:
    assert isinstance(turn.parts, list)
    turn.parts.clear()


@pytest.mark.parametrize("change", [_changes_state, _changes_metadata, _changes_parts])
def test_what_an_executor_changes_is_neither_the_request_s_nor_the_session_s(change: Any) -> None:
    """The fingerprint goes into the receipt at the end: changed, each redelivery would be a run_id_conflict."""
    request = a_request(
        input=[{"type": "text", "text": "hello"}],
        session_state={"asked": {"list": [1]}},
        metadata={"asked": {"list": [1]}},
    )
    session = a_session(session_state={"stored": {"list": [1]}}, metadata={"stored": {"list": [1]}})
    before = request.model_dump_json(), request.fingerprint, repr(session)
    change(new_turn(request, session, context_of(), attempt=1))
    assert (request.model_dump_json(), request.fingerprint, repr(session)) == before


def test_two_turns_of_one_request_share_nothing() -> None:
    request = a_request(session_state={"list": []})
    first, second = (new_turn(request, None, context_of(), attempt=number) for number in (1, 2))
    first.session_state["list"] = ["changed"]
    first.usage.input_tokens += 5
    assert second.session_state == {"list": []}
    assert second.usage.input_tokens == 0
    assert first.steps is not second.steps
    assert first.member_runs is not second.member_runs
