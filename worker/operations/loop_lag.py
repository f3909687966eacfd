"""The event loop's lag: how late a timer comes. What a team's code blocks, every turn of its worker waits for."""

from __future__ import annotations

import asyncio
from typing import Final

from worker.measures import Measures

_EVERY_SECONDS: Final = 0.25
_MOST_MISSED: Final = 240
"""A minute's: of a process that was frozen for longer, the rest is not made up for."""


async def measure_loop_lag(measures: Measures) -> None:
    """Measure it four times a second, until the task is cancelled.

    The timer keeps its beat: a loop that is blocked for a second and a half misses six of them, and each is measured.
    With the one that comes at last alone, a loop that is blocked a twentieth of the time would look well to 99 %.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due, loop.time() - _MOST_MISSED * _EVERY_SECONDS) + _EVERY_SECONDS
        await asyncio.sleep(due - loop.time())
        measures.loop_lagged(max(loop.time() - due, 0.0))
