"""The page of turns: what a worker is at now, since when, and at which step; for whoever asks why something is slow.

It shows ids of runs and sessions, and the names of steps, which have those of tools and members. It shows nothing of
what was said, nor whose session it is.
"""

from __future__ import annotations

from typing import Final

from pydantic_core import to_json

from worker.operations.probes import Answer
from worker.turns.running import RunningRuns

MOST_SHOWN: Final = 1_000


def turns_page(running: RunningRuns, *, requests: int) -> Answer:
    """Return what is at hand as JSON: the first 1,000 turns, those that came first before the others.

    `requests` is how many the worker holds. Each turn is its session's next: it waits for a place or for its claim, is
    executed, or is being stored. What waits behind them in their sessions is only counted.
    """
    shown = running.seen(MOST_SHOWN)
    return Answer(
        200, to_json({"total": len(running), "behind": max(requests - len(running), 0), "turns": shown}) + b"\n"
    )
