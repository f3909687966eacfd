"""JSON values as YAML, as far as documents need it: written here, since nothing else of a worker's needs YAML."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z_$/][A-Za-z0-9_$/. -]*[A-Za-z0-9_$/.]|[A-Za-z]")
"""Text that YAML takes for text without quotes; but for the next."""
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_BLOCK: Final = re.compile(r"[^\s\x00-\x1f\x7f-\x9f](?:[^\x00-\x09\x0b-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?")
"""Text of several lines that a literal block gives back as it is."""


def yaml_of(value: Any) -> str:  # noqa: ANN401 - JSON
    """Return a JSON value as YAML in block style, with a newline at its end."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:  # noqa: ANN401 - JSON
    match value:
        case dict() if value:
            return [line for key, item in value.items() for line in _entry(f"{_scalar(str(key))}:", item)]
        case list() if value:
            return [line for item in value for line in _item(item)]
        case _:
            return [_scalar(value)]


def _entry(key: str, item: Any) -> list[str]:  # noqa: ANN401 - JSON
    if isinstance(item, dict | list) and item:
        return [key, *_indented(_lines(item))]
    if isinstance(item, str) and "\n" in item and _BLOCK.fullmatch(item):
        return [f"{key} |-", *_indented(item.split("\n"))]
    return [f"{key} {_scalar(item)}"]


def _item(item: Any) -> list[str]:  # noqa: ANN401 - JSON
    first, *others = _lines(item)
    return [f"- {first}", *_indented(others)]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _scalar(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
