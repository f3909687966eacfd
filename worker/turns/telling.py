"""What those who watch a run are told beside its turn: that it has joined another's, and how it was answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic_core import from_json

from schemas.errors import ErrorCode
from schemas.requests import RunRequest

_FOREIGN: Final = frozenset(
    {
        ErrorCode.RUN_ID_CONFLICT,
        ErrorCode.UNSUPPORTED_PROPERTY,
        ErrorCode.SESSION_FORBIDDEN,
        ErrorCode.SESSION_TARGET_MISMATCH,
    }
)
"""What is refused before anything is looked at that is the run's or the session's."""

PublishEvent = Callable[[RunRequest, dict[str, Any]], None]
"""Publish an event's fields for a run. It doesn't wait, and never fails."""


def tell_joined(publish: PublishEvent, joined: Sequence[RunRequest], *, answered_by: str, attempt: int) -> None:
    """Tell that these requests have joined a turn."""
    for request in joined:
        if request.stream:
            told = {"attempt": attempt, "number": 1, "time": time.time()}
            publish(request, told | {"type": "run_joined", "answered_by": answered_by})


def tell_answer(publish: PublishEvent, request: RunRequest, body: bytes, *, again: bool = False) -> None:
    """Tell how a request was answered that has no turn now; `again`: it may have been told before.

    What was told then is of an attempt before this one: consumers order by attempt and number. It is the only event of
    its attempt, and the same each time that it is told. Where the run or the session is another's, those who watch that
    are told nothing.
    """
    if not request.stream:
        return
    reply = from_json(body)
    if (reply["error"] or {}).get("code") not in _FOREIGN:
        told = {"attempt": reply["attempt"] + again, "number": 1, "time": float(reply["completed_at"])}
        publish(request, told | {"type": "run_finished", "reply": reply})
