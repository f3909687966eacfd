"""Tracebacks for logs: where an error was raised, and its type, without its text.

The text of an error is whatever its raiser put there, and may quote a conversation: pydantic's quotes what it refuses.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

LEFT_OUT: Final = "(text left out; see TEAMTURN_LOG_CONTENT)"
_MOST_CHAINED: Final = 10

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def traceback_without_texts(exc_info: ExcInfo) -> str:
    """Return a traceback as Python writes it, causes first, with the errors' types alone; of groups their members."""
    return "\n".join(_told(exc_info[1], _MOST_CHAINED)).rstrip("\n")


def _told(error: BaseException, most: int) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and most:
        yield from _told(before, most - 1)
        led = "was the direct cause of" if error.__cause__ else "was being handled during"
        yield f"\nThe error above {led} this one:\n"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    yield f"{type(error).__module__}.{type(error).__qualname__} {LEFT_OUT}"
    if isinstance(error, BaseExceptionGroup) and most:
        for number, one in enumerate(error.exceptions[:_MOST_CHAINED], start=1):
            yield f"\nOf the group, error {number}:\n"
            yield from _told(one, most - 1)
