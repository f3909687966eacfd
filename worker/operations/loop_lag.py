"""The event loop's lag: how late a timer comes. What a team's code blocks, every turn of its worker waits for."""

from __future__ import annotations

import asyncio
from typing import Final

from worker.measures import Measures

_EVERY_SECONDS: Final = 0.25


async def measure_loop_lag(measures: Measures) -> None:
    """Measure it four times a second, until the task is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY_SECONDS
        await asyncio.sleep(_EVERY_SECONDS)
        measures.loop_lagged(max(loop.time() - due, 0.0))
