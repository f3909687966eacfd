"""What a fleet is kept busy with: the executors of `acceptance_teams`, and some that take their time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from teamturn import Turn, executor
from tests.data import acceptance_teams


@executor("steady")
async def steady(turn: Turn) -> Any:
    """Take a while without any work, so that mailboxes are full while a small machine is not."""
    await asyncio.sleep(random.uniform(0.04, 0.12))  # noqa: S311 - nothing secret
    return turn.input


@executor("unhurried")
async def unhurried(turn: Turn) -> Any:
    """Take longer, for who looks at what is lost and found, and leaves the processors to the other tests."""
    await asyncio.sleep(random.uniform(0.15, 0.3))  # noqa: S311 - nothing secret
    return turn.input


@executor("blocking")
async def blocking(turn: Turn) -> Any:
    """Keep the event loop for so many seconds, as careless code does."""
    time.sleep(float(turn.input))  # noqa: ASYNC251 - that is what it is for
    return turn.input


@executor("paying")
async def paying(turn: Turn) -> Any:
    """Take two steps that must not be made twice."""

    async def pay() -> str:
        await asyncio.sleep(0.3)
        return "paid"

    return [await turn.step("pay", pay), await turn.step("pay", pay)]


everything = [*acceptance_teams.everything, steady, unhurried, blocking, paying]
