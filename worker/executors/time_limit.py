"""The time limit of an attempt: the turn's own, or the request's deadline, whichever comes first."""

from __future__ import annotations

import asyncio

from worker.errors import DeadlineExceeded, TurnFailed, TurnTimedOut
from worker.executors.journal import Journal


class TimeLimit:
    """How long an attempt may take, from when this is made. What its steps wait to be recorded is not the turn's time.

    The deadline is a point in time, whatever the turn waits for.
    """

    def __init__(self, seconds: float, seconds_to_deadline: float, journal: Journal) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._seconds = seconds
        self._deadline = self._begun + seconds_to_deadline
        self._journal = journal

    @property
    def until(self) -> float:
        """When it is over as things are now, by the event loop's clock."""
        return min(self._deadline, self._turn_limit)

    async def wait(self, ended: asyncio.Future[None]) -> None:
        """Wait until the attempt has ended, or its time is over."""
        while True:
            await asyncio.wait([ended], timeout=max(self.until - self._loop.time(), 0.0))
            if ended.done() or self._loop.time() >= self.until:
                return

    def passed(self) -> TurnFailed:
        """Return what a turn that is over time has failed with."""
        if self._deadline < self._turn_limit:
            return DeadlineExceeded("the deadline passed while the turn ran")
        return TurnTimedOut(f"the turn ran longer than {self._seconds:g} s")

    @property
    def _turn_limit(self) -> float:
        return self._begun + self._seconds + self._journal.waited_seconds
