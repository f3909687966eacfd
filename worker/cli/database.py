"""Asking Postgres from a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from worker.errors import StoreUnavailable
from worker.sessions.database import application_name, connect
from worker.sessions.migrations import require_current
from worker.settings import Settings

_T = TypeVar("_T")


def on_database(query: Callable[[asyncpg.Connection], Awaitable[_T]]) -> _T:
    """Return what a query finds, over a connection of its own to a schema that is up to date.

    Raises StartupError, and StoreUnavailable for what Postgres refuses: the right to it, a change on a stand-by.
    """
    settings = Settings.read()

    async def run() -> _T:
        connection = await connect(settings.postgres_url, settings.db_schema, application=application_name("sessions"))
        try:
            await require_current(connection, settings.db_schema)
            return await query(connection)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(f"Postgres refuses it, or was lost ({error})") from error
        finally:
            await connection.close()

    return asyncio.run(run())
