"""Servers of a test's own, to be stopped, crashed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from worker.sandbox.errors import SandboxError
from worker.sandbox.server import Server
from worker.sandbox.site import Site
from worker.sandbox.ways import OWN, have_postgres, have_rabbitmq


@asynccontextmanager
async def own_postgres() -> AsyncIterator[Server]:
    async with _own(lambda site: have_postgres(site, OWN)) as server:
        yield server


@asynccontextmanager
async def own_rabbitmq() -> AsyncIterator[Server]:
    async with _own(lambda site: have_rabbitmq(site, OWN)) as server:
        yield server


@asynccontextmanager
async def _own(have: Callable[[Site], Server]) -> AsyncIterator[Server]:
    """A server; where none can be had but somebody else's, the test is skipped."""
    site = Site(report=print)
    try:
        try:
            server = await asyncio.to_thread(have, site)
        except SandboxError as error:
            pytest.skip(str(error))
        yield server
    finally:
        await asyncio.to_thread(site.close)
