"""What people see in a terminal."""

from __future__ import annotations

import re
import time
import unicodedata
from typing import Final

from pydantic import BaseModel
from rich.text import Text

_KILO: Final = 1000
_CONTROL: Final = re.compile("[\x7f-\x9f]")
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def printable(text: str) -> str:
    """Return text that a terminal only shows: a model's answer must not move its cursor or set its title."""
    return "".join(one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\ufffd" for one in text)


def json_line(model: BaseModel, *, indent: int | None = None) -> str:
    """Return a model as JSON that a terminal only shows: JSON escapes the control characters below U+0020 only."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", model.model_dump_json(indent=indent))


def age(seconds_since_epoch: int) -> str:
    """Return how long ago a time was, in its largest unit: `3 min`."""
    passed = max(int(time.time()) - seconds_since_epoch, 0)
    size, unit = next(((size, unit) for size, unit in _UNITS if passed >= size), (1, "s"))
    return f"{passed // size} {unit} ago"


def one_line(text: str) -> str:
    """Return text that a terminal only shows, in one line."""
    return " ".join(printable(text).split())


def cut(text: str, columns: int) -> str:
    """Return text as far as it fits into so many columns, with an ellipsis where something is missing."""
    shown = Text(text)
    shown.truncate(columns, overflow="ellipsis")
    return shown.plain


def size(number_of_bytes: int) -> str:
    """Return a size in its largest unit: `1.2 kB`."""
    if number_of_bytes < _KILO:
        return f"{number_of_bytes} B"
    if number_of_bytes < _KILO**2:
        return f"{number_of_bytes / _KILO:.1f} kB"
    return f"{number_of_bytes / _KILO**2:.1f} MB"
