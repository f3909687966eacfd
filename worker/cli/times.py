"""Times as people give them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from worker.errors import StartupError

_SPAN: Final = re.compile(r"(\d+) ?(s|min|h|d)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


def moment_of(since: str) -> datetime:
    """Return the moment that `--since` means: so long ago, or a time. Raises StartupError."""
    if found := _SPAN.fullmatch(since.strip()):
        number, unit = found.groups()
        try:
            return datetime.now(UTC) - timedelta(seconds=int(number) * _SECONDS[unit])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(since.strip())
    except ValueError:
        raise StartupError(
            f"--since {since!r} is no time: give 30min, 2h, 3d, or a time such as 2030-01-31T12:00:00Z"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
