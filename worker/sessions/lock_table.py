"""The share of Postgres's lock table that a worker may fill with its sessions' locks.

The table is everybody's: at 12,500 locks in one of 6,400 other clients' plain SELECTs failed (measured). A turn that
would take the fleet past its share waits for another to end, before it is claimed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

SHARE: Final = 0.8
"""Of max_locks_per_transaction x max_connections, for all workers of the fleet together."""


class LockBudget:
    """Counts the sessions that are locked here, and holds claims up at this worker's part of the share."""

    def __init__(self, locks: int) -> None:
        """`locks` is how many Postgres has room for."""
        self._share = int(locks * SHARE)
        self._limit = max(self._share, 1)
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many sessions may be locked here at once."""
        return self._limit

    def share_with(self, workers: int) -> None:
        """Share with so many workers, this one included, from now on."""
        self._limit = max(self._share // max(workers, 1), 1)
        self._admit()

    async def take(self) -> None:
        """Wait until one more session may be locked, first come, first served, and count it."""
        if self._held >= self._limit or self._waiting:
            await self._admitted()
        else:
            self._held += 1

    def give_back(self) -> None:
        """Say that one that was counted is unlocked."""
        self._held -= 1
        self._admit()

    async def _admitted(self) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(room)
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                self.give_back()  # it was admitted, and does not come
            raise

    def _admit(self) -> None:
        """Count those in who wait, as far as there is room."""
        while self._waiting and self._held < self._limit:
            room = self._waiting.popleft()
            if not room.done():
                self._held += 1
                room.set_result(None)
