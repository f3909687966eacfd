"""`input`: a string, or a list of text and binary parts."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode
from schemas.requests import BinaryPart
from tests.unit.examples import a_body, a_request
from worker.errors import RequestRefused
from worker.intake.reading import read_request


def _file(**fields: Any) -> dict[str, Any]:
    return {"type": "binary", "media_type": "image/png", "data": "aGk="} | fields


def _refused(part: object) -> str:
    with pytest.raises(RequestRefused) as refused:
        read_request(a_body(input=[part]), None, largest_bytes=1_000_000)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert refused.value.message.startswith("input")
    return refused.value.message


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("hello", "hello"),
        ("", ""),
        ([{"type": "text", "text": "one"}], "one"),
        ([{"type": "text", "text": "one"}, _file(), {"type": "text", "text": "two"}], "one\ntwo"),
        ([_file()], ""),
    ],
)
def test_the_text_of_an_input_is_its_text_parts_a_line_each(given: object, text: str) -> None:
    assert a_request(input=given).text == text


@given(st.binary(max_size=200))
def test_a_binary_part_is_the_bytes_that_its_base64_says(data: bytes) -> None:
    encoded = base64.b64encode(data)
    request = a_request(input=[_file(data=encoded.decode())])
    assert request.input == [BinaryPart(type="binary", media_type="image/png", data=encoded)]
    assert isinstance(request.input, list)
    assert [part.data for part in request.input if isinstance(part, BinaryPart)] == [data]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("aGk", id="padding missing"),
        pytest.param("!!!!", id="no base64 at all"),
        pytest.param("-_-_", id="the URL-safe alphabet"),
        pytest.param("aé==", id="not ASCII"),
        pytest.param(5, id="a number"),
        pytest.param(None, id="null"),
    ],
)
def test_data_that_is_not_base64_is_refused_and_not_made_into_other_bytes(data: object) -> None:
    _refused(_file(data=data))


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({}, id="empty"),
        pytest.param({"text": "a"}, id="no type"),
        pytest.param({"type": "video", "text": "a"}, id="unknown type"),
        pytest.param({"type": "text"}, id="text without text"),
        pytest.param({"type": "text", "text": 5}, id="text that is a number"),
        pytest.param({"type": "text", "text": None}, id="text that is null"),
        pytest.param({"type": "text", "text": "a", "lang": "en"}, id="unknown field"),
        pytest.param({"type": "binary", "data": "aGk="}, id="no media type"),
        pytest.param({"type": "binary", "media_type": "image/png"}, id="no data"),
        pytest.param(_file(name="x.png"), id="unknown field of a binary part"),
        pytest.param(_file(media_type="png"), id="media type without a slash"),
        pytest.param(_file(media_type="a/b/c"), id="media type with two"),
        pytest.param(_file(media_type="image/png\n"), id="media type with a line feed"),
        pytest.param(_file(media_type=f"a/{'b' * 254}"), id="media type of 256 characters"),
    ],
)
def test_a_part_is_exactly_as_the_contract_has_it(part: object) -> None:
    _refused(part)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "text"}, "text"),
        ({"type": "text", "text": "a", "lang": "en"}, "lang"),
        (_file(media_type="png"), "media_type"),
        (_file(data="aGk"), "data"),
    ],
)
def test_the_reason_names_what_is_wrong_with_the_part(part: object, problem: str) -> None:
    assert problem in _refused(part)
