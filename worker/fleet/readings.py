"""Readings of the fleet for gauges, taken now and then beside everything else.

Not on a lane: a session's commit would wait for them. The connection is made for each look and closed after it, so that
a worker needs none the rest of the time: 17 ms in all, 3 of them the worker's CPU. The journal is looked through less
often, since it is read as a whole: 14 ms with 10,000 rows, half a second with 200,000 (measured).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import asyncpg
import structlog
from pydantic import SecretStr

import sql
from worker.sessions.database import DRIVER_ERRORS, application_name, connect

_EVERY_SECONDS: Final = 15.0
_ORPHANS_EVERY: Final = 20
"""Looks, of which one is also for orphans: five minutes, where an orphan is an hour old."""
_STATEMENT_TIMEOUT: Final = "5s"
_LOOK_SECONDS: Final = 25.0
"""Past the time limits of the connecting and of both statements: a server that is frozen keeps to none."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FleetReading:
    """A fleet as it was found; None: it is not known."""

    workers: int | None = None
    oldest_turn_seconds: float | None = None
    lock_wait_seconds: float | None = None
    orphan_steps: int | None = None


class FleetReadings:
    """Looks at the fleet of a prefix, and keeps what was found last."""

    def __init__(self, url: SecretStr, schema: str, prefix: str) -> None:
        self._url = url
        self._schema = schema
        self._prefix = prefix
        self._looks = 0
        self._failing = False
        self.last = FleetReading()
        """Nothing in it after a look that failed: an old number would pass for a new one."""

    async def run(self) -> None:
        """Look now and then, until the task is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_SECONDS)

    async def look(self) -> None:
        """Look once. It never raises for what comes of it."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                self.last = await self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver's own faults too: no turn needs a gauge
            self.last = FleetReading()
            if not self._failing:
                _log.info("fleet_not_read", reason=f"{type(error).__name__}: {error}"[:300])
            self._failing = True
        else:
            self._failing = False

    async def _read(self) -> FleetReading:
        with_orphans = self._looks % _ORPHANS_EVERY == 0
        connection = await connect(
            self._url, self._schema, application=application_name("gauges"), statement_timeout=_STATEMENT_TIMEOUT
        )
        try:
            found = await connection.fetchrow(sql.READ_FLEET_GAUGES, self._prefix)
            assert found is not None  # noqa: S101 - for the type checker: it has no condition that could fail
            reading = replace(FleetReading(**dict(found)), orphan_steps=self.last.orphan_steps)
            if with_orphans:
                reading = replace(reading, orphan_steps=await _orphans(connection))
        finally:
            with suppress(*DRIVER_ERRORS, TimeoutError):
                await connection.close(timeout=1)
        self._looks += 1
        return reading


async def _orphans(connection: asyncpg.Connection) -> int | None:
    try:
        return int(await connection.fetchval(sql.COUNT_ORPHAN_STEPS))
    except asyncpg.QueryCanceledError:  # past its time: the rest is known all the same
        return None
