"""A time limit for an answer of another program, that a busy event loop does not eat up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

_TICK_SECONDS: Final = 0.25


@asynccontextmanager
async def answered_within(
    seconds: float, *, held_up: Callable[[], bool] = lambda: False, given_up: Callable[[], bool] = lambda: False
) -> AsyncIterator[None]:
    """Raise TimeoutError after so many seconds, as asyncio.timeout does, but of a loop that comes to look for answers.

    While the other program has said that it is `held_up`, the seconds don't count. What is held up is `given_up` where
    nobody waits for it any more: then TimeoutError is raised at once.

    While teams' own code keeps the event loop, an answer may lie in the socket unread. A second in which the loop comes
    round once counts as a quarter of one, and whatever it comes round for is seen before the limit is.
    """
    async with asyncio.timeout(None) as limit:
        ticks = _Ticks(limit, math.ceil(seconds / _TICK_SECONDS), held_up, given_up)
        try:
            yield
        finally:
            ticks.timer.cancel()


class _Ticks:
    """Brings a limit about after so many rounds of the loop, a tick apart at least."""

    def __init__(
        self, limit: asyncio.Timeout, left: int, held_up: Callable[[], bool], given_up: Callable[[], bool]
    ) -> None:
        self._limit = limit
        self._left = left
        self._held_up = held_up
        self._given_up = given_up
        self._loop = asyncio.get_running_loop()
        self.timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        held_up = self._held_up()
        self._left -= not held_up
        if self._left > 0 and not (held_up and self._given_up()):
            self.timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        else:
            self._limit.reschedule(self._loop.time())
