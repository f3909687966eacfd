"""Company: turns run side by side, but for one that may be what killed its worker before. That one runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Company:
    """The turns that run in this worker at a time.

    One that is to be alone waits for those that run; those that come after it, such ones among them, wait for it.
    """

    def __init__(self) -> None:
        self._together = 0
        self._loners = 0
        self._one = asyncio.Lock()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._open = asyncio.Event()
        self._open.set()

    @asynccontextmanager
    async def joined(self, *, alone: bool) -> AsyncIterator[Place]:
        """Run in company, or alone, for the block or until the place is shared."""
        place = Place(self)
        try:
            if alone:
                await self._be_alone(place)
            else:
                await self._open.wait()
                self._count(place)
            yield place
        finally:
            self._leave(place)

    async def _be_alone(self, place: Place) -> None:
        place.waits_alone = True
        self._loners += 1
        self._open.clear()
        await self._one.acquire()
        place.is_alone = True
        await self._nobody.wait()

    def _count(self, place: Place) -> None:
        place.is_counted = True
        self._together += 1
        self._nobody.clear()

    def _leave(self, place: Place) -> None:
        self._end_alone(place)
        if place.is_counted:
            place.is_counted = False
            self._together -= 1
            if not self._together:
                self._nobody.set()

    def _end_alone(self, place: Place) -> None:
        if place.is_alone:
            place.is_alone = False
            self._one.release()
        if place.waits_alone:
            place.waits_alone = False
            self._loners -= 1
            if not self._loners:
                self._open.set()

    def share(self, place: Place) -> None:
        """Let others run beside one that was alone."""
        if place.is_alone:
            self._count(place)
            self._end_alone(place)


class Place:
    """A turn's place in the company."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self.waits_alone = False
        self.is_alone = False
        self.is_counted = False

    def share(self) -> None:
        """Let others run beside it from now on: it has shown that it does not kill its worker at once."""
        self._company.share(self)
