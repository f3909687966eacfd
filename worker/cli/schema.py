"""`teamturn migrate`."""

from __future__ import annotations

import asyncio

import asyncpg
import typer

from worker.sessions.database import application_name, connect
from worker.sessions.migrations import migrate
from worker.settings import Settings


def migrate_schema() -> None:
    """Bring the schema up to date.

    That is TEAMTURN_DB_SCHEMA in TEAMTURN_POSTGRES_URL. Safe to repeat, and to run twice at once.
    """
    settings = Settings.read()

    async def run() -> None:
        connection: asyncpg.Connection = await connect(
            settings.postgres_url, settings.db_schema, application=application_name("migrate"), writes=True
        )
        try:
            applied = await migrate(connection, settings.db_schema)
        finally:
            await connection.close()
        for migration in applied:
            typer.echo(f"applied {migration.version:04d} {migration.name}")
        typer.echo(f"schema {settings.db_schema!r} is up to date")

    asyncio.run(run())
