"""Migrations: plain SQL files, applied in order, each in a transaction, one program at a time.

Why no migration tool: the kept ones (Alembic, yoyo) bring a second driver beside asyncpg, and SQLAlchemy or a
command line of their own, for what is forty lines here.
"""

from __future__ import annotations

import asyncpg

import sql
from worker.errors import StartupError


async def pending(connection: asyncpg.Connection, schema: str) -> tuple[sql.Migration, ...]:
    """Return the migrations that this database lacks. Raises StartupError if it is ahead of this program."""
    found = await connection.fetchrow(sql.FIND_SCHEMA, schema)
    if found is None or not found["table_exists"]:
        return sql.MIGRATIONS
    try:
        applied = {record["version"] for record in await connection.fetch(sql.APPLIED_MIGRATIONS)}
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
        # A schema that a role may not use is left out of its search_path: its tables seem not to be there.
        raise StartupError(
            f"the role of TEAMTURN_POSTGRES_URL has no rights on the schema {schema!r} ({error}): grant them, or use "
            "the role that migrated it"
        ) from None
    newest = sql.MIGRATIONS[-1].version
    if applied and max(applied) > newest:
        raise StartupError(
            f"the schema {schema!r} is at version {max(applied)}, and this program knows {newest}: "
            "install the version of teamturn that migrated it, or a newer one"
        )
    return tuple(migration for migration in sql.MIGRATIONS if migration.version not in applied)


async def require_current(connection: asyncpg.Connection, schema: str) -> None:
    """Raise StartupError if the schema lacks a migration."""
    missing = await pending(connection, schema)
    if missing:
        state = "has no tables of teamturn" if len(missing) == len(sql.MIGRATIONS) else "is older than this program"
        raise StartupError(f"the schema {schema!r} {state}: run teamturn migrate, or start with --migrate")


async def migrate(connection: asyncpg.Connection, schema: str) -> tuple[sql.Migration, ...]:
    """Bring the schema up to date and return what was applied. Raises StartupError where Postgres refuses."""
    try:
        async with connection.transaction():
            await connection.execute(sql.LOCK_MIGRATIONS, schema)
            found = await connection.fetchrow(sql.FIND_SCHEMA, schema)
            if found is None or not found["schema_exists"]:
                # Not `if not exists`: that takes the right to make schemas, also where there is nothing to be made.
                # A name can't be a parameter; the settings let only letters, digits and underscores through.
                await connection.execute(f'create schema "{schema}"')
            await connection.execute(sql.CREATE_MIGRATIONS_TABLE)
            missing = await pending(connection, schema)
            for migration in missing:
                await connection.execute(migration.text)
                await connection.execute(sql.RECORD_MIGRATION, migration.version, migration.name)
    except asyncpg.PostgresError as error:
        raise StartupError(f"Postgres refuses to migrate the schema {schema!r}: {error}") from error
    return missing
