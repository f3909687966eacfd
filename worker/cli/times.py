"""Times as people give them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from worker.errors import StartupError

_SPAN: Final = re.compile(r"(\d+) ?(s|min|h|d)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


def span_of(text: str, *, option: str) -> timedelta:
    """Return the span of time that an option means: 30min, 2h or 90d. Raises StartupError."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise StartupError(f"{option} {text!r} is no span of time: give 12h or 90d")
    number, unit = found.groups()
    try:
        return timedelta(seconds=int(number) * _SECONDS[unit])
    except OverflowError:
        return timedelta.max


def ago(span: timedelta) -> datetime:
    """Return the moment that is so long ago, or the earliest that there is."""
    try:
        return datetime.now(UTC) - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def moment_of(since: str) -> datetime:
    """Return the moment that `--since` means: so long ago, or a time. Raises StartupError."""
    if _SPAN.fullmatch(since.strip()):
        return ago(span_of(since, option="--since"))
    try:
        moment = datetime.fromisoformat(since.strip())
    except ValueError:
        raise StartupError(
            f"--since {since!r} is no time: give 30min, 2h, 3d, or a time such as 2030-01-31T12:00:00Z"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
