"""Past runs as Agno and other programs store them: read as history, whatever they look like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.unit.strategies import json_objects, json_values
from worker.executors.turn import text_of
from worker.sessions.stored_runs import past_run
from worker.team.history import history_messages

_AGNO: dict[str, Any] = {
    "run_id": "a1",
    "team_id": "capital",
    "team_name": "Capital",
    "session_id": "s1",
    "user_id": None,
    "input": {"input_content": "What is the capital of France?"},
    "content": "Paris.",
    "content_type": "str",
    "status": "COMPLETED",
    "created_at": 1_900_000_000,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is …?"}],
    "member_responses": [],
    "metrics": {"input_tokens": 5},
    "model": "gpt-5",
    "model_provider": "OpenAI",
}


def test_a_run_that_agno_stored_is_read() -> None:
    run = past_run(_AGNO)
    assert (run.run_id, run.input) == ("a1", "What is the capital of France?")
    assert (run.content_text, run.created_at) == ("Paris.", 1_900_000_000)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"input_content": "plain"}, "plain"),
        ({"input_content": {"city": "Paris"}}, '{"city":"Paris"}'),
        ({"input_content": ["a", "b"]}, '["a","b"]'),
        ({"input_content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]}, "a\nb"),
        ({"input_content": []}, ""),
        ({"input_content": None}, ""),
        ({"input_content": "x", "images": []}, "x"),
        ({}, ""),
        ("as plain text", "as plain text"),
        (None, ""),
    ],
)
def test_what_was_asked_is_read_as_text_from_any_form_of_it(given: object, text: str) -> None:
    assert past_run(_AGNO | {"input": given}).input == text


def test_a_question_that_agno_stored_as_messages_is_not_lost() -> None:
    run = past_run(_AGNO | {"input": {"input_content": [{"role": "user", "content": "What is it?"}]}})
    assert "What is it?" in run.input
    assert len(history_messages([run])) == 2


@pytest.mark.parametrize("content", [None, "", "text", 5, 1.5, False, [1], {"a": [None]}])
def test_an_answer_of_any_type_is_kept(content: Any) -> None:
    run = past_run(_AGNO | {"content": content})
    assert run.content == content
    assert run.content_text == text_of(content)


@pytest.mark.parametrize("run", [None, [], "text", 5, {}])
def test_what_is_no_run_at_all_is_an_empty_one(run: object) -> None:
    empty = past_run(run)
    assert (empty.run_id, empty.input, empty.content, empty.created_at) == ("", "", None, 0)
    assert history_messages([empty]) == []


@pytest.mark.parametrize("created_at", [None, "2030-01-31", 1.5, [], {}])
def test_a_time_that_is_no_number_of_seconds_is_none(created_at: object) -> None:
    assert past_run(_AGNO | {"created_at": created_at}).created_at == 0


def test_a_run_id_that_is_null_is_no_id() -> None:
    assert past_run(_AGNO | {"run_id": None}).run_id == ""


@given(json_values())
def test_any_json_is_read(run: object) -> None:
    history_messages([past_run(run)])


@given(json_objects(), json_values(), json_values(), json_values())
def test_any_json_in_the_fields_of_a_run_is_read(
    more: dict[str, Any], given: object, content: object, odd: object
) -> None:
    read = past_run(more | {"input": {"input_content": given}, "content": content, "run_id": odd, "created_at": odd})
    assert isinstance(read.input, str)
    assert isinstance(read.content_text, str)
    assert isinstance(read.run_id, str)
    history_messages([read])
