"""Readings of the fleet that fail: the worker goes on without them."""

from __future__ import annotations

import asyncpg
import pytest
from pydantic import SecretStr

from worker.errors import StartupError, StoreUnavailable
from worker.fleet import readings
from worker.fleet.readings import FleetReading, FleetReadings


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("away"),
        StartupError("the certificate has expired"),
        asyncpg.InsufficientPrivilegeError("no"),
        asyncpg.InternalClientError("got result for unknown protocol state"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_look_fails_with_only_makes_the_fleet_unknown(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> asyncpg.Connection:
        raise error

    monkeypatch.setattr(readings, "connect", fails)
    looking = FleetReadings(SecretStr("postgresql://localhost/"), "ai", "teamturn")
    looking.last = FleetReading(workers=3)
    await looking.look()
    assert looking.last == FleetReading()
