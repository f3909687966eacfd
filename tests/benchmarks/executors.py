"""What the worker executes while it is measured."""

from __future__ import annotations

import asyncio
import os

from pydantic import JsonValue

from teamturn import Turn, executor

SECONDS_VARIABLE = "BENCH_SECONDS"
"""How long `asleep` sleeps."""

_seconds = float(os.environ.get(SECONDS_VARIABLE, "1"))
_under_way: set[str] = set()


@executor("instant")
async def instant(turn: Turn) -> JsonValue:
    """Answer at once; as every executor by default, it is given the session's last three runs."""
    return turn.input


@executor("asleep")
async def asleep(turn: Turn) -> JsonValue:
    """Answer after a while how many turns were under way then in this process, itself included."""
    _under_way.add(turn.run_id)
    try:
        await asyncio.sleep(_seconds)
        return len(_under_way)
    finally:
        _under_way.remove(turn.run_id)


@executor("endless")
async def endless(turn: Turn) -> JsonValue:
    """Answer at once if there is something to answer, and else never."""
    if not turn.input:
        await asyncio.Event().wait()
    return turn.input


everything = [instant, asleep, endless]
