"""What people see in a terminal."""

from __future__ import annotations

import time
import unicodedata
from typing import Final

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def printable(text: str) -> str:
    """Return text that a terminal only shows: a model's answer must not move its cursor or set its title."""
    return "".join(one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\ufffd" for one in text)


def age(seconds_since_epoch: int) -> str:
    """Return how long ago a time was, in its largest unit: `3 min`."""
    passed = max(int(time.time()) - seconds_since_epoch, 0)
    size, unit = next(((size, unit) for size, unit in _UNITS if passed >= size), (1, "s"))
    return f"{passed // size} {unit} ago"
