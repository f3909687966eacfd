"""Making sure that what users' code hands over is JSON, and that Postgres takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from worker.errors import InvalidResult

MAX_LEVELS: Final = 100
"""How deep a value from outside may be nested; what is stored around it is a few levels more."""
MAX_STATE_BYTES: Final = 4 * 2**20
"""How large a session's state or metadata may become: each turn reads and writes all of it."""
_MOST_ITEMS: Final = 100_000
_LARGEST_INTEGER: Final = 10**1000
"""Python refuses to print integers of more than 4,300 digits; nobody counts that far."""


def as_json(value: Any, *, what: str) -> JsonValue:  # noqa: ANN401 - whatever users' code returned
    """Return the value as plain JSON: models and dataclasses as objects, times as text.

    NUL characters and lone surrogates, which jsonb refuses, become U+FFFD; the rest is kept. Raises InvalidResult
    for what JSON can't hold: other objects, NaN, infinity, endless nesting.
    """
    try:
        return clean(value)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidResult(f"{what} is not a JSON value ({type(value).__name__})") from error


def clean(value: Any, *, levels: int = MAX_LEVELS) -> JsonValue:  # noqa: ANN401 - any value
    """Return the value as JSON that jsonb takes; see `as_json`. Raises ValueError where there is none."""
    if levels < 0:
        raise ValueError("nested too deeply")
    match value:
        case Enum():
            return clean(value.value, levels=levels)
        case dict():
            return {_clean_key(key): clean(item, levels=levels - 1) for key, item in value.items()}
        case list() | tuple():
            return [clean(item, levels=levels - 1) for item in value]
        case str() | int() | float() | None:
            return _clean_scalar(value)
        case Iterator():
            return clean(_items(value), levels=levels)
        case _:
            return clean(to_jsonable_python(value, inf_nan_mode="constants"), levels=levels - 1)


def _clean_scalar(value: str | int | float | None) -> JsonValue:  # noqa: PYI041 - an int is told apart below
    match value:
        case str():
            return _clean_text(value)
        case int() if abs(value) >= _LARGEST_INTEGER:
            raise ValueError("nobody counts that far")
        case float() if not math.isfinite(value):
            raise ValueError("NaN and infinity are not JSON")
        case _:
            return value


def _items(values: Iterator[Any]) -> list[Any]:
    items = list(islice(values, _MOST_ITEMS + 1))  # it may have no end
    if len(items) > _MOST_ITEMS:
        raise ValueError(f"more than {_MOST_ITEMS} items")
    return items


def _clean_key(key: Any) -> str:  # noqa: ANN401 - whatever a dict's key is
    text = key if isinstance(key, str) else next(iter(to_jsonable_python({key: None})))
    return _clean_text(text)


def _clean_text(text: str) -> str:
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def json_text(value: JsonValue) -> str:
    """Return the value's JSON on one line."""
    return to_json(value).decode()
