"""Making sure that what users' code hands over is JSON, and that Postgres takes it."""

from __future__ import annotations

import math
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from worker.errors import InvalidResult

_MAX_DEPTH: Final = 100
_LARGEST_INTEGER: Final = 10**1000
"""Python refuses to print integers of more than 4,300 digits; nobody counts that far."""


def as_json(value: Any, *, what: str) -> JsonValue:  # noqa: ANN401 - whatever users' code returned
    """Return the value as plain JSON: models and dataclasses as objects, times as text.

    NUL characters and lone surrogates, which jsonb refuses, become U+FFFD; the rest is kept. Raises InvalidResult
    for what JSON can't hold: other objects, NaN, infinity, endless nesting.
    """
    try:
        return clean(to_jsonable_python(value, inf_nan_mode="constants"))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidResult(f"{what} is not a JSON value ({type(value).__name__})") from error


def clean(value: Any, depth: int = 0) -> JsonValue:  # noqa: ANN401 - any JSON value
    """Return a JSON value that jsonb takes; see `as_json`. Raises ValueError where there is no such value."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    match value:
        case str():
            return _clean_text(value)
        case dict():
            return {_clean_text(str(key)): clean(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [clean(item, depth + 1) for item in value]
        case float() if not math.isfinite(value):
            raise ValueError("NaN and infinity are not JSON")
        case bool() | float() | None:
            return value
        case int() if abs(value) < _LARGEST_INTEGER:
            return value
        case _:
            raise ValueError(f"{type(value).__name__} is not JSON")


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
