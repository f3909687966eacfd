"""What users' code hands over: made plain JSON that Postgres takes, or refused."""

from __future__ import annotations

import json
import re
import uuid
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from schemas.errors import ErrorCode
from tests.unit.examples import nested
from tests.unit.strategies import any_text, json_values
from worker.errors import InvalidResult
from worker.executors.json_values import MAX_VALUES, as_json, clean, json_text


@dataclass
class Price:
    """A dataclass of a user's."""

    amount: object
    currency: str = "EUR"


class Answer(BaseModel):
    """A model of a user's."""

    text: str
    price: Any = None


class Colour(Enum):
    """An enum of a user's."""

    RED = "red"


class Level(IntEnum):
    """A number with a name."""

    HIGH = 3


class Word(StrEnum):
    """Text with a name."""

    YES = "yes"


Point = namedtuple("Point", "x y")  # noqa: PYI024 - what users have


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param(None, None, id="null"),
        pytest.param(True, True, id="bool"),
        pytest.param(0, 0, id="zero"),
        pytest.param(-(10**900), -(10**900), id="a number of 900 digits"),
        pytest.param(1.5, 1.5, id="float"),
        pytest.param("", "", id="empty text"),
        pytest.param("é😀\u2028\t", "é😀\u2028\t", id="text"),
        pytest.param({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, id="nested"),
        pytest.param((1, (2, 3)), [1, [2, 3]], id="tuples"),
        pytest.param(Point(1, 2), [1, 2], id="named tuple"),
        pytest.param({1}, [1], id="set"),
        pytest.param(frozenset(("a",)), ["a"], id="frozenset"),
        pytest.param(deque([1, 2]), [1, 2], id="deque"),
        pytest.param(OrderedDict(b=1, a=2), {"b": 1, "a": 2}, id="ordered dict"),
        pytest.param({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}, id="numbers as keys"),
        pytest.param({None: 1}, {"null": 1}, id="None as a key"),
        pytest.param(Price(3), {"amount": 3, "currency": "EUR"}, id="dataclass"),
        pytest.param(
            [Answer(text="x", price=Price(1))],
            [{"text": "x", "price": {"amount": 1, "currency": "EUR"}}],
            id="models of dataclasses",
        ),
        pytest.param(datetime(2030, 1, 31, 12, tzinfo=UTC), "2030-01-31T12:00:00Z", id="datetime"),
        pytest.param(date(2030, 1, 31), "2030-01-31", id="date"),
        pytest.param(timedelta(seconds=90), "PT1M30S", id="timedelta"),
        pytest.param(uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001", id="UUID"),
        pytest.param(Path("/a/b"), "/a/b", id="path"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal"),
        pytest.param(Colour.RED, "red", id="enum"),
        pytest.param(Level.HIGH, 3, id="int enum"),
        pytest.param(Word.YES, "yes", id="str enum"),
        pytest.param(b"text", "text", id="bytes of UTF-8"),
        pytest.param((number for number in range(3)), [0, 1, 2], id="generator"),
        pytest.param(nested(100), nested(100), id="100 levels"),
    ],
)
def test_values_become_plain_json(value: object, plain: object) -> None:
    result = as_json(value, what="it")
    assert result == plain
    assert type(result) is type(plain)


def test_more_values_than_the_event_loop_has_time_for_are_refused() -> None:
    as_json([[]] * (MAX_VALUES - 1), what="it")
    several: list[object] = [
        [[]] * MAX_VALUES,
        {"a": ["\x00"] * MAX_VALUES},
        ({} for _ in range(MAX_VALUES + 1)),
        [{1}] * MAX_VALUES,
    ]
    for many in several:
        with pytest.raises(InvalidResult, match="the state has more than 100,000 values"):
            as_json(many, what="the state")


def test_a_text_is_one_value_whatever_is_in_it() -> None:
    commas = [",[{" * MAX_VALUES]
    assert as_json(commas, what="it") == commas


def _circle() -> list[object]:
    circle: list[object] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: float("nan"), id="NaN"),
        pytest.param(lambda: [float("inf")], id="infinity"),
        pytest.param(lambda: {"a": -float("inf")}, id="minus infinity"),
        pytest.param(lambda: Price(float("nan")), id="NaN in a dataclass"),
        pytest.param(object, id="an object"),
        pytest.param(lambda: {"a": object()}, id="an object within"),
        pytest.param(lambda: print, id="a function"),
        pytest.param(lambda: Answer, id="a class"),
        pytest.param(lambda: ValueError("x"), id="an exception"),
        pytest.param(lambda: b"\xff\xfe", id="bytes that are no text"),
        pytest.param(lambda: 10**5000, id="a number of 5,001 digits"),
        pytest.param(lambda: -(10**5000), id="a negative one"),
        pytest.param(lambda: {10**5000: 1}, id="one as a key"),
        pytest.param(_circle, id="a list within itself"),
        pytest.param(lambda: nested(101), id="101 levels"),
        pytest.param(lambda: nested(100_000), id="100,000 levels"),
    ],
)
def test_what_json_can_not_hold_is_an_invalid_result_that_says_where_it_was(made: Callable[[], object]) -> None:
    value = made()
    with pytest.raises(InvalidResult, match="the answer is not a JSON value") as failed:
        as_json(value, what="the answer")
    assert failed.value.code is ErrorCode.INVALID_RESULT
    assert type(value).__name__ in failed.value.message


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\x00", "\ufffd"),
        ("\ud800", "\ufffd"),
        ("\ud800A", "\ufffdA"),
        ("A\udfff", "A\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
        ("😀\ud83d", "😀\ufffd"),
        ("\\u0000 \\ud800", "\\u0000 \\ud800"),
    ],
    ids=ascii,
)
def test_what_jsonb_refuses_in_text_is_replaced_and_the_rest_kept(text: str, cleaned: str) -> None:
    assert as_json(text, what="it") == cleaned


@pytest.mark.parametrize(
    ("put", "cleaned"),
    [
        (lambda text: [text], ["x\ufffd\ufffd"]),
        (lambda text: (0, (text,)), [0, ["x\ufffd\ufffd"]]),
        (lambda text: {"k": {"k": text}}, {"k": {"k": "x\ufffd\ufffd"}}),
        (lambda text: Answer(text="y", price=text), {"text": "y", "price": "x\ufffd\ufffd"}),
        (lambda text: Price(1, text), {"amount": 1, "currency": "x\ufffd\ufffd"}),
        (lambda text: {text: 1}, {"x\ufffd\ufffd": 1}),
        (lambda text: [{text: [1]}], [{"x\ufffd\ufffd": [1]}]),
    ],
    ids=["in a list", "in tuples", "in objects", "in a model", "in a dataclass", "as a key", "as a key within"],
)
def test_it_is_replaced_wherever_the_text_stands(put: Callable[[str], object], cleaned: object) -> None:
    assert as_json(put("x\ud800\x00"), what="it") == cleaned


def _replaced(text: str) -> str:
    pairs = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"),
        text,
    )
    return re.sub("[\ud800-\udfff\x00]", "\ufffd", pairs)


@given(any_text)
@example("\ud800\udc00\x00\udc00\ud800")
def test_any_text_can_be_stored_once_it_is_cleaned_and_only_what_could_not_is_replaced(text: str) -> None:
    assert clean(text) == _replaced(text)


@given(json_values(st.text(st.characters(codec="utf-8", exclude_characters="\x00"))))
def test_json_comes_back_from_as_json_and_from_text_as_it_was(value: JsonValue) -> None:
    plain = as_json(value, what="it")
    assert plain == value
    assert json.loads(json_text(plain)) == value
    assert json.loads(json.dumps(plain)) == value


@given(json_values(any_text))
def test_cleaning_twice_is_cleaning_once(value: JsonValue) -> None:
    once = clean(value)
    assert clean(once) == once
    assert as_json(once, what="it") == once
    assert "\n" not in json_text(once)


@given(json_values(any_text))
@example({"\ud800": 1})
def test_any_json_of_any_text_can_be_returned_by_an_executor(value: JsonValue) -> None:
    json_text(as_json(value, what="it")).encode()
