"""The client's present link, and a new one whenever it is lost.

aio-pika's own `connect_robust` is not used: it can't know that every unanswered request has to be published again, and
on a dead connection it lets publishers hang.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from pydantic import SecretStr

from worker.client.link import Link, Received
from worker.errors import ClientClosed
from worker.intake.topology import Topology

_RETRY_SECONDS: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Before each try, the last of them for ever; half as much more or less, so that clients don't come all at once."""
_LASTING_SECONDS: Final = 5.0
"""A link that lasted so long was a good one: the next one is tried at once."""


class Reconnector:
    """Holds a link, and opens another one when it is lost, until it is closed."""

    def __init__(self, url: SecretStr, names: Topology, received: Received) -> None:
        self._url = url
        self._names = names
        self._received = received
        self._link: Link | None = None
        self._there = asyncio.Event()
        self._trouble: str | None = None
        self._closed = False

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being published now, as a sentence; None: nothing that is known."""
        if not self._there.is_set():
            return self._trouble or "the connection to RabbitMQ was lost"
        if self._link is not None and self._link.blocked:
            return "RabbitMQ takes no messages now: an alarm says that its memory or disk is short"
        return None

    async def open(self) -> None:
        """Open the first link. Raises as `Link.open` does."""
        self._link = await Link.open(self._url, self._names, self._received)
        self._there.set()

    async def link(self) -> Link:
        """Return a link that is not known to be lost; wait until there is one. Raises ClientClosed."""
        while True:
            await self._there.wait()
            if self._closed:
                raise ClientClosed("the client was closed")
            if self._link is not None and not self._link.ended.done():
                return self._link
            self._there.clear()

    async def run(self) -> None:
        """Open a new link whenever one is lost, until it is closed or the task is cancelled."""
        loop = asyncio.get_running_loop()
        tries = 0
        while self._link is not None and not self._closed:
            opened_at = loop.time()
            await asyncio.wait({self._link.ended})
            if not self._closed:
                self._there.clear()
            await self._link.close()
            if loop.time() - opened_at >= _LASTING_SECONDS:
                tries = 0
            while not (self._there.is_set() or self._closed):
                seconds = _RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)]
                tries += 1
                await asyncio.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - to spread them
                try:
                    await self.open()
                except Exception as error:  # noqa: BLE001 - whatever it is can pass; who waits is told when it does not
                    self._trouble = str(error)
        await self.close()  # also what was opened meanwhile

    async def close(self) -> None:
        """Close the link; there will be no other one."""
        self._closed = True
        self._there.set()
        if self._link is not None:
            await self._link.close()
