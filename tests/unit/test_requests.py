"""The run request, field by field as the contract has it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.errors import ErrorCode
from schemas.ids import SessionType
from schemas.requests import BinaryPart, OnBusy, RunRequest, TextPart
from tests.unit.examples import a_body, a_request, request_fields
from worker.errors import RequestRefused
from worker.intake.reading import read_request

_IDS = ("run_id", "session_id", "team_id", "user_id")
_WRONG: list[tuple[tuple[str, ...], list[Any]]] = [
    (_IDS, [5, True, ["a"], {}, "", "x" * 256, "a\n"]),
    (("input",), [..., None, 5, True, {}, [], [5], ["text"], {"type": "text", "text": "x"}]),
    (("session_state", "metadata"), [[], "x", 5, True]),
    (("stream",), ["true", 1, 0, "yes", []]),
    (("on_busy",), ["", "ENQUEUE", "wait", 1, True]),
]


def test_a_request_with_every_field_says_what_it_was_sent() -> None:
    request = a_request(
        run_id="r9",
        session_id="s9",
        team_id="capital",
        user_id="u9",
        input=[{"type": "text", "text": "look"}, {"type": "binary", "media_type": "image/png", "data": "aGk="}],
        session_state={"count": 1, "deep": {"list": [1, None, "x"]}},
        metadata={"channel": "web"},
        stream=True,
        deadline="2030-01-31T12:00:00+01:00",
        on_busy="coalesce",
    )
    assert (request.run_id, request.session_id, request.user_id) == ("r9", "s9", "u9")
    assert (request.target.type, request.target.id) == (SessionType.TEAM, "capital")
    assert request.input == [
        TextPart(type="text", text="look"),
        BinaryPart(type="binary", media_type="image/png", data=b"aGk="),
    ]
    assert request.session_state == {"count": 1, "deep": {"list": [1, None, "x"]}}
    assert request.metadata == {"channel": "web"}
    assert request.stream is True
    assert request.deadline == datetime(2030, 1, 31, 11, 0, tzinfo=UTC)
    assert request.on_busy is OnBusy.COALESCE


def test_what_is_left_out_has_the_contract_s_default() -> None:
    request = RunRequest(run_id="r1", team_id="t1", input="hello")
    assert (request.session_state, request.metadata, request.stream) == ({}, {}, False)
    assert (request.user_id, request.deadline, request.on_busy) == (None, None, OnBusy.ENQUEUE)


@pytest.mark.parametrize("session", [..., None], ids=["absent", "null"])
def test_without_a_session_id_the_session_is_the_run_id(session: object) -> None:
    assert a_request(run_id="r7", session_id=session).session_id == "r7"


@pytest.mark.parametrize("kind", list(SessionType))
def test_the_field_that_names_the_target_sets_the_session_type(kind: SessionType) -> None:
    request = a_request(**{"team_id": ..., f"{kind.value}_id": "one"})
    assert (request.target.type, request.target.id) == (kind, "one")


@pytest.mark.parametrize(
    "targets",
    [
        {"team_id": ...},
        {"team_id": None},
        {"team_id": "a", "agent_id": "b"},
        {"team_id": "a", "workflow_id": "a"},
        {"team_id": ..., "agent_id": "b", "workflow_id": "c"},
        {"team_id": "a", "agent_id": "b", "workflow_id": "c"},
    ],
)
def test_exactly_one_target_is_named(targets: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of team_id, agent_id and workflow_id"):
        a_request(**targets)


def test_targets_given_as_null_are_not_named() -> None:
    fields = request_fields() | {"agent_id": None, "workflow_id": None}
    assert RunRequest.model_validate(fields).target.type is SessionType.TEAM


@pytest.mark.parametrize("field", ["user_id", "deadline", "session_id"])
def test_null_says_the_same_as_leaving_an_optional_field_out(field: str) -> None:
    fields = request_fields()
    fields.pop(field, None)
    assert RunRequest.model_validate(fields | {field: None}) == RunRequest.model_validate(fields)


@pytest.mark.parametrize("name", ["sesion_id", "priority", "Input", "runId", "", "team_id "])
def test_an_unknown_field_is_refused_and_named(name: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_request(a_body(**{name: "x"}), None, largest_bytes=1_000_000)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert name in refused.value.message
    assert "unknown field" in refused.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for fields, values in _WRONG for field in fields for value in values],
)
def test_a_field_of_the_wrong_type_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_request(a_body(**{field: value}), "message", largest_bytes=1_000_000)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert refused.value.message.startswith(field)


@pytest.mark.parametrize("value", ["enqueue", "reject", "interrupt", "coalesce"])
def test_on_busy_is_one_of_the_four_words(value: str) -> None:
    assert a_request(on_busy=value).on_busy == value


def test_a_request_can_not_be_changed() -> None:
    request = a_request()
    with pytest.raises(ValidationError, match="frozen"):
        request.run_id = "r2"  # type: ignore[misc]


@pytest.mark.parametrize(
    "decisions",
    [
        [{"tool_call_id": f"c{number}", "approved": True} for number in range(1001)],
        [{"tool_call_id": "c1", "approved": False, "message": "x" * 10_001}],
    ],
    ids=["many", "long"],
)
def test_decisions_are_a_thousand_at_most_and_each_is_short(decisions: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_request(a_body(continues="r0", decisions=decisions), None, largest_bytes=2**20)
    assert (refused.value.code, "decisions" in refused.value.message) == (ErrorCode.INVALID_REQUEST, True)
