"""Writes that Postgres turns down for the moment: tried again, and a sign that there is no room for more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from worker.errors import LaneLost, StoreFull, StoreUnavailable
from worker.measures import UNMEASURED, Measures, Tried

_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0)

_TOLD_AT_FIRST: Final = 4
_TOLD_EVERY_TRIES: Final = 12
"""About once a minute: Postgres may be full for long."""

_T = TypeVar("_T")

_log = structlog.get_logger()


class Writes:
    """The writes of a worker's turns; each goes on until it is taken, or its lane is lost."""

    def __init__(self, measures: Measures = UNMEASURED) -> None:
        self.measures = measures
        self._full = 0

    @property
    def have_room(self) -> bool:
        """Whether none of them waits for room on Postgres's disk."""
        return not self._full

    async def persistently(self, write: Callable[[], Awaitable[_T]], *, what: Tried = Tried.WRITE) -> _T:
        """Write until Postgres takes it, as long as the lane lives: what was refused for the moment was rolled back.

        The lock is still held, and the turn need not be taken again: its model calls are paid for. `what` it is that is
        tried again.
        """
        tries = full = 0
        try:
            while True:
                try:
                    return await write()
                except LaneLost:
                    raise
                except StoreUnavailable as error:
                    self._full -= full
                    full = int(isinstance(error, StoreFull))
                    self._full += full
                    if tries < _TOLD_AT_FIRST or tries % _TOLD_EVERY_TRIES == 0:  # every turn says it for itself
                        _log.warning("write_retried", reason=str(error), tries=tries)
                    await asyncio.sleep(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS) - 1)])
                    tries += 1
                    self.measures.retried(what)
        finally:
            self._full -= full
