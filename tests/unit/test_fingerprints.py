"""The fingerprint: equal when two requests ask for the same, however they are written."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.requests import RunRequest
from tests.unit.examples import a_request, request_fields
from tests.unit.strategies import request_bodies
from worker.intake.reading import read_request

_SPACES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:  ")])


def _shuffled(value: Any, random: Random) -> Any:
    """The same JSON with its keys in another order, at every level."""
    match value:
        case dict():
            keys = list(value)
            random.shuffle(keys)
            return {key: _shuffled(value[key], random) for key in keys}
        case list():
            return [_shuffled(item, random) for item in value]
        case _:
            return value


def _read(body: str) -> RunRequest:
    return read_request(body.encode(), None, largest_bytes=10_000_000)


@given(request_bodies, st.randoms(use_true_random=False), _SPACES, st.booleans())
def test_key_order_white_space_and_escapes_make_no_difference(
    fields: dict[str, Any],
    random: Random,
    separators: tuple[str, str],
    escaped: bool,  # noqa: FBT001 - one of two spellings
) -> None:
    written = json.dumps(fields)
    otherwise = json.dumps(_shuffled(fields, random), separators=separators, ensure_ascii=escaped, indent=1)
    assert _read(written).fingerprint == _read(otherwise).fingerprint


@given(request_bodies)
def test_a_default_given_or_left_out_makes_no_difference(fields: dict[str, Any]) -> None:
    defaults = {
        "session_id": fields["run_id"],
        "user_id": None,
        "session_state": {},
        "metadata": {},
        "stream": False,
        "deadline": None,
        "on_busy": "enqueue",
    }
    assert RunRequest.model_validate(fields).fingerprint == RunRequest.model_validate(defaults | fields).fingerprint


@given(request_bodies)
def test_the_run_id_in_the_message_id_makes_no_difference(fields: dict[str, Any]) -> None:
    without = {name: value for name, value in fields.items() if name != "run_id"}
    from_message = read_request(json.dumps(without).encode(), fields["run_id"], largest_bytes=10_000_000)
    assert from_message.fingerprint == RunRequest.model_validate(fields).fingerprint


@given(request_bodies)
def test_a_request_that_goes_through_json_once_more_keeps_its_fingerprint(fields: dict[str, Any]) -> None:
    request = RunRequest.model_validate(fields)
    again = RunRequest.model_validate_json(request.model_dump_json(exclude_defaults=True))
    assert again.fingerprint == request.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "r2"},
        {"session_id": "s2"},
        {"team_id": "t2"},
        {"team_id": ..., "agent_id": "t1"},
        {"user_id": "u1"},
        {"input": "hello "},
        {"input": [{"type": "text", "text": "hello"}]},
        {"session_state": {"a": 1}},
        {"metadata": {"a": 1}},
        {"stream": True},
        {"deadline": "2030-01-31T12:00:00Z"},
        {"on_busy": "reject"},
    ],
    ids=str,
)
def test_another_value_of_any_field_is_another_fingerprint(changes: dict[str, Any]) -> None:
    assert a_request(**changes).fingerprint != a_request().fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": None}, {}),
        ({"a": []}, {"a": {}}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": {"b": 1}}, {"a.b": 1}),
    ],
)
def test_json_values_that_python_takes_for_equal_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert a_request(session_state=one).fingerprint != a_request(session_state=other).fingerprint


def test_the_fingerprint_is_the_same_in_every_version() -> None:
    """Receipts keep it: another one after an upgrade would make each redelivery a run_id_conflict."""
    plain = RunRequest.model_validate(request_fields())
    assert plain.fingerprint.hex() == "95b1f584d4894896e9d018a29c30683acfa5679b5a21493275529a7ff75fea95"
    full = a_request(
        user_id="u1",
        input=[{"type": "text", "text": "é"}, {"type": "binary", "media_type": "image/png", "data": "aGk="}],
        session_state={"b": [1, 2.5, None], "a": {"x": True}},
        metadata={"k": "v"},
        stream=True,
        deadline="2030-01-31T12:00:00+01:00",
        on_busy="reject",
    )
    assert full.fingerprint.hex() == "52bbd5703e392a06055624c6ed91d47dd62739ee64ef87367dd5f37c5f042b62"
