"""The line to RabbitMQ, connected again whenever it was away."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Final, Self

from worker.client import RunClient
from worker.errors import BrokerUnavailable, StartupError
from worker.settings import Settings

_FIRST_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 5.0
_USEFUL_SECONDS: Final = 5.0


class Line:
    """A `RunClient`, and another one after it where it is no use any more. An async context manager.

    Its beginning raises StartupError or BrokerUnavailable; after that RabbitMQ may be away as long as it likes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._connected_at = 0.0
        self.client = self._new()
        """The present one."""

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        await self.client.__aexit__(kind, error, trace)

    async def replace(self, client: RunClient) -> None:
        """Wait until RabbitMQ is back, and have a new client; unless this one is replaced already."""
        async with self._turn:
            if client is not self.client:
                return
            await client.__aexit__(None, None, None)
            # One that was of no use for long: there is a connection, and something else is wrong.
            seconds = _FIRST_SECONDS if time.monotonic() - self._connected_at > _USEFUL_SECONDS else _LONGEST_SECONDS
            while True:
                await asyncio.sleep(seconds)
                fresh = self._new()
                try:
                    await fresh.__aenter__()
                except (BrokerUnavailable, StartupError):  # a broker that starts refuses for a while
                    seconds = min(2 * seconds, _LONGEST_SECONDS)
                else:
                    self.client = fresh
                    self._connected_at = time.monotonic()
                    return

    def _new(self) -> RunClient:
        return RunClient(self._settings.amqp_url.get_secret_value(), prefix=self._settings.prefix)
