"""Waiting for conditions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 20) -> None:
    """Wait until the condition holds; fail, naming it, if it does not in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if loop.time() > end:
            raise AssertionError(f"not within {seconds:g} s: {_named(condition)}")
        await asyncio.sleep(0.02)


def _named(condition: Callable[[], bool | Awaitable[bool]]) -> str:
    """The condition's source, or of a partial what it calls and with what."""
    return repr(condition) if isinstance(condition, partial) else inspect.getsource(condition).strip()
