"""Reading a request from a message: a RunRequest, or a refusal with a code and a reason; never anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import DEAD_LETTERED, ErrorCode
from schemas.requests import RunRequest
from tests.unit.examples import a_body, nested
from tests.unit.strategies import any_text, json_values, request_bodies
from worker.errors import RequestRefused
from worker.intake.reading import read_request

_LIMIT = 1_048_576
_SECRET = "hunter2hunter2"


def _read(body: bytes, message_id: str | None = None, *, limit: int = _LIMIT) -> RunRequest | RequestRefused:
    try:
        return read_request(body, message_id, largest_bytes=limit)
    except RequestRefused as error:
        refusal = error
    assert refusal.code in DEAD_LETTERED
    assert 0 < len(refusal.message) <= 600
    refusal.message.encode()  # it becomes an AMQP header
    return refusal


def _code(body: bytes, message_id: str | None = None, *, limit: int = _LIMIT) -> ErrorCode | None:
    read = _read(body, message_id, limit=limit)
    return read.code if isinstance(read, RequestRefused) else None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"run_id": "r1"} {}', id="more after the end"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(a_body().decode().encode("utf-16"), id="UTF-16"),
        pytest.param(a_body().replace(b"hello", b"h\xe9llo"), id="Latin-1"),
        pytest.param(a_body().replace(b"hello", b"a\\ud800b"), id="a lone surrogate"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'"text"', id="a string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[" * 100_000, id="100,000 levels, cut off"),
        pytest.param(a_body(metadata={"deep": nested(150)}), id="150 levels"),
        pytest.param(b'{"run_id": "r1", "team_id": "t1", "input": "x", "metadata": {"a": NaN}}', id="NaN"),
        pytest.param(b'{"run_id": "r1", "team_id": "t1", "input": "x", "metadata": {"a": 1e400}}', id="1e400"),
        pytest.param(
            b'{"run_id": "r1", "team_id": "t1", "input": "x", "metadata": {"a": ' + b"9" * 100_000 + b"}}",
            id="100,000 digits",
        ),
    ],
)
def test_what_is_not_json_that_can_be_stored_is_malformed(body: bytes) -> None:
    assert _code(body, "message") is ErrorCode.MALFORMED_REQUEST


def test_a_body_is_measured_in_bytes_before_it_is_read() -> None:
    body = a_body(input="é" * 100)
    assert _code(body, limit=len(body)) is None
    assert _code(body, limit=len(body) - 1) is ErrorCode.REQUEST_TOO_LARGE
    assert _code(b"\xff" * 11, limit=10) is ErrorCode.REQUEST_TOO_LARGE


@pytest.mark.parametrize("run_id", [..., None], ids=["absent", "null"])
def test_without_a_run_id_the_message_id_is_it_and_the_session(run_id: object) -> None:
    request = _read(a_body(run_id=run_id, session_id=...), "m-1")
    assert isinstance(request, RunRequest)
    assert (request.run_id, request.session_id) == ("m-1", "m-1")


def test_a_run_id_of_its_own_goes_before_the_message_id() -> None:
    request = _read(a_body(run_id="r1"), "m-1")
    assert isinstance(request, RunRequest)
    assert request.run_id == "r1"


@pytest.mark.parametrize("message_id", [None, ""])
def test_neither_run_id_nor_message_id_is_missing_run_id(message_id: str | None) -> None:
    assert _code(a_body(run_id=...), message_id) is ErrorCode.MISSING_RUN_ID


@pytest.mark.parametrize("message_id", ["a\x00b", "a\nb", "x" * 256])
def test_a_message_id_that_is_no_id_is_an_invalid_request(message_id: str) -> None:
    assert _code(a_body(run_id=...), message_id) is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": f"{_SECRET}\n"},
        {"user_id": f"{_SECRET}\x00"},
        {"input": {"password": _SECRET}},
        {"input": [{"type": _SECRET}]},
        {"input": [{"type": "binary", "media_type": _SECRET, "data": "aGk="}]},
        {"input": [{"type": "binary", "media_type": "a/b", "data": _SECRET}]},
        {"session_state": _SECRET},
        {"metadata": [_SECRET]},
        {"stream": _SECRET},
        {"deadline": _SECRET},
        {"on_busy": _SECRET},
        {"surprise": _SECRET},
    ],
    ids=str,
)
def test_a_reason_never_repeats_a_value(fields: dict[str, Any]) -> None:
    refusal = _read(a_body(**fields))
    assert isinstance(refusal, RequestRefused)
    assert _SECRET not in refusal.message


def test_a_reason_is_short_even_where_a_field_s_name_is_long() -> None:
    assert isinstance(_read(a_body(**{"x" * 100_000: 1})), RequestRefused)


@given(request_bodies)
def test_every_valid_request_is_read(fields: dict[str, Any]) -> None:
    request = _read(json.dumps(fields).encode())
    assert isinstance(request, RunRequest)
    assert request.run_id == fields["run_id"]
    assert request.session_id == fields.get("session_id", fields["run_id"])
    assert request.session_state == fields.get("session_state", {})


@given(st.binary(max_size=300), st.none() | any_text)
def test_any_bytes_are_read_or_refused(body: bytes, message_id: str | None) -> None:
    _read(body, message_id)


@given(json_values(any_text), st.none() | any_text)
@example({"run_id": {}}, None)
@example({"input": [[]]}, "m")
def test_any_json_is_read_or_refused(value: object, message_id: str | None) -> None:
    _read(json.dumps(value).encode(), message_id)


@given(
    request_bodies,
    st.dictionaries(st.sampled_from(sorted(RunRequest.model_fields)) | any_text, json_values(any_text), min_size=1),
    st.none() | any_text,
)
def test_a_request_with_any_fields_replaced_is_read_or_refused(
    fields: dict[str, Any], replaced: dict[str, Any], message_id: str | None
) -> None:
    _read(json.dumps(fields | replaced).encode(), message_id)


@given(request_bodies, st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3), st.binary(max_size=3)), max_size=4))
def test_a_request_with_any_bytes_damaged_is_read_or_refused(
    fields: dict[str, Any], damages: list[tuple[int, int, bytes]]
) -> None:
    body = json.dumps(fields, ensure_ascii=False).encode()
    for at, length, damage in damages:
        body = body[:at] + damage + body[at + length :]
    _read(body, "message")
