"""Making sure that what users' code hands over is JSON, and that Postgres takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import chain, islice
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from worker.errors import InvalidResult

MAX_LEVELS: Final = 100
"""How deep a value from outside may be nested; what is stored around it is a few levels more."""
MAX_STATE_BYTES: Final = 4 * 2**20
"""How large a session's state or metadata may become: each turn reads and writes all of it."""
MAX_VALUES: Final = 100_000
"""How many values, nested ones included, one from outside may hold: each costs the event loop about a microsecond."""
_ENDLESS: Final = 900
"""Levels: past what Python's own encoder takes."""
_LARGEST_INTEGER: Final = 10**4300
"""Python refuses to print integers of more than 4,300 digits; nobody counts that far."""
_encoded: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def as_json(value: Any, *, what: str) -> JsonValue:  # noqa: ANN401 - whatever users' code returned
    """Return the value as plain JSON: models and dataclasses as objects, times as text.

    NUL characters and lone surrogates, which jsonb refuses, become U+FFFD; the rest is kept. Raises InvalidResult
    for what JSON can't hold: other objects, NaN, infinity, endless nesting; and for more than MAX_VALUES values.
    """
    try:
        return clean(value)
    except TooManyValues as error:
        raise InvalidResult(f"{what} has {error}") from None
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidResult(f"{what} is not a JSON value ({type(value).__name__})") from error


class TooManyValues(ValueError):
    """More values than MAX_VALUES."""


def clean(value: Any, *, levels: int = MAX_LEVELS, most: int | None = MAX_VALUES) -> JsonValue:  # noqa: ANN401 - any value
    """Return the value as JSON that jsonb takes, a copy of its own; see `as_json`. Raises ValueError if there is none.

    What is JSON already goes through C alone: in Python, a few MB of small values would hold up the event loop for
    seconds.
    """
    if type(value) is str:
        return _clean_text(value)
    try:
        text = _encoded(value)
        plain: JsonValue = from_json(text)
    except (TypeError, ValueError, RecursionError):
        plain = _walked(value, levels)
        _check_size(plain, levels, most)
        return plain
    containers = text.count("[") + text.count("{")
    # Counted only where there may be too much: characters of texts are among these.
    if containers > levels or (most is not None and containers + text.count(",") > most):
        _check_size(plain, levels, most)
    return _walked(plain, levels) if "\\u0000" in text else plain


def cleaned_json(value: Any) -> Any:  # noqa: ANN401 - any value
    """Return a value that is JSON as jsonb takes it; whatever else it is, as it is."""
    try:
        _encoded(value)
    except (TypeError, ValueError, RecursionError):
        return value
    return clean(value, levels=_ENDLESS, most=None)


def _check_size(plain: JsonValue, levels: int, most: int | None) -> None:
    level, values = [plain], 1
    for _ in range(levels + 1):
        containers = [item for item in level if type(item) is dict or type(item) is list]
        if not containers:
            return
        level = list(chain.from_iterable(map(_items_of, containers)))
        values += len(level)
        if most is not None and values > most:
            raise TooManyValues(f"more than {most:,} values")
    raise ValueError("nested too deeply")


def _items_of(container: dict[str, JsonValue] | list[JsonValue]) -> Iterable[JsonValue]:
    return container.values() if isinstance(container, dict) else container


def _walked(value: Any, levels: int) -> JsonValue:  # noqa: ANN401 - any value
    if levels < 0:
        raise ValueError("nested too deeply")
    match value:
        case Enum():
            return _walked(value.value, levels)
        case dict():
            return {_clean_key(key): _walked(item, levels - 1) for key, item in value.items()}
        case list() | tuple():
            return [_walked(item, levels - 1) for item in value]
        case str() | int() | float() | None:
            return _clean_scalar(value)
        case Iterator():
            return _walked(_items(value), levels)
        case _:
            return _walked(to_jsonable_python(value, inf_nan_mode="constants"), levels - 1)


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
    items = list(islice(values, MAX_VALUES + 1))  # it may have no end
    if len(items) > MAX_VALUES:
        raise TooManyValues(f"more than {MAX_VALUES:,} values")
    return items


def _clean_key(key: Any) -> str:  # noqa: ANN401 - whatever a dict's key is
    if key is None:
        return "null"  # as JSON's encoders write it
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
