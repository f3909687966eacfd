"""Migrations: plain SQL files, applied in order by one program at a time, in one transaction but for indexes.

They are applied before the program that needs them is started, while the one before it goes on: a migration only adds,
and waits for no lock for long (`tests/unit/test_migrations.py` has the rules). A migration says with which older
version it is compatible, and that is recorded with it. So a program starts on an older schema never, and on a newer one
where all that it does not know is compatible with it: a deployment can be rolled back, and the schema stays as it is.

Why no migration tool: the kept ones (Alembic, yoyo) bring a second driver beside asyncpg, and SQLAlchemy or a
command line of their own, for what is forty lines here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import asyncpg

import sql
from worker.errors import StartupError
from worker.sessions.database import DRIVER_ERRORS

_RETRY_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class SchemaState:
    """How a schema is to this program."""

    missing: tuple[sql.Migration, ...]
    """What it lacks."""
    newest: int
    """The newest migration that it has; 0: none."""

    @property
    def has_tables(self) -> bool:
        """Whether anything was applied that this program knows."""
        return len(self.missing) < len(sql.MIGRATIONS)


async def schema_state(connection: asyncpg.Connection, schema: str) -> SchemaState:
    """Return how a schema is to this program. Raises StartupError if it is ahead of it, and not compatible with it."""
    found = await connection.fetchrow(sql.FIND_SCHEMA, schema)
    if found is None or not found["table_exists"]:
        return SchemaState(sql.MIGRATIONS, newest=0)
    try:
        applied: dict[int, int | None] = {
            record["version"]: None for record in await connection.fetch(sql.APPLIED_MIGRATIONS)
        }
        if found["compatible_exists"]:
            compatible = await connection.fetch(sql.APPLIED_COMPATIBLE_MIGRATIONS)
            applied |= {record["version"]: record["compatible_with"] for record in compatible}
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
        # A schema that a role may not use is left out of its search_path: its tables seem not to be there.
        raise StartupError(
            f"the role of TEAMTURN_POSTGRES_URL has no rights on the schema {schema!r} ({error}): grant them, or use "
            "the role that migrated it"
        ) from None
    known = sql.MIGRATIONS[-1].version
    beyond = [version for version, with_ in applied.items() if version > known and (with_ is None or with_ > known)]
    if beyond:
        raise StartupError(
            f"the schema {schema!r} is at version {max(applied)}, and this program knows {known}: "
            "install the version of teamturn that migrated it, or a newer one"
        )
    missing = tuple(migration for migration in sql.MIGRATIONS if migration.version not in applied)
    return SchemaState(missing, newest=max(applied, default=0))


async def require_current(connection: asyncpg.Connection, schema: str) -> None:
    """Raise StartupError if the schema lacks a migration, or is not compatible with this program."""
    found = await schema_state(connection, schema)
    if found.missing:
        state = "is older than this program" if found.has_tables else "has no tables of teamturn"
        raise StartupError(f"the schema {schema!r} {state}: run teamturn migrate, or start with --migrate")


async def migrate(connection: asyncpg.Connection, schema: str) -> tuple[sql.Migration, ...]:
    """Bring the schema up to date and return what was applied. Raises StartupError where Postgres refuses.

    It changes all or nothing, and gives up where somebody else keeps it from a table for three seconds. Only indexes of
    large tables come after that, one by one, built beside those who write: that waits until transactions have ended
    that were open before.
    """
    applied: list[sql.Migration] = []
    try:
        async with _alone(connection, schema):
            async with connection.transaction():
                await connection.execute(sql.LIMIT_MIGRATION_WAITS)
                await _make_tables(connection, schema)
                missing = (await schema_state(connection, schema)).missing
                applied += await _apply(connection, takewhile(lambda one: not one.in_no_transaction, missing))
            applied += await _apply(connection, missing[len(applied) :])
    except asyncpg.LockNotAvailableError as error:
        changed = f"{len(applied)} of its migrations are applied" if applied else "nothing was changed"
        raise StartupError(
            f"the schema {schema!r} was not migrated: a long transaction keeps a table of it locked "
            f"(pg_locks and pg_stat_activity say which); {changed}, run it again"
        ) from error
    except asyncpg.PostgresError as error:
        raise StartupError(f"Postgres refuses to migrate the schema {schema!r}: {error}") from error
    return tuple(applied)


@asynccontextmanager
async def _alone(connection: asyncpg.Connection, schema: str) -> AsyncIterator[None]:
    """Keep other programs from migrating the schema during the block."""
    while not await connection.fetchval(sql.LOCK_MIGRATIONS, schema):  # noqa: ASYNC110 - another program has it
        await asyncio.sleep(_RETRY_SECONDS)
    try:
        yield
    finally:
        # With a lost connection it is gone.
        with suppress(*DRIVER_ERRORS):
            await connection.fetchval(sql.UNLOCK_MIGRATIONS, schema)


async def _make_tables(connection: asyncpg.Connection, schema: str) -> None:
    found = await connection.fetchrow(sql.FIND_SCHEMA, schema)
    if found is None or not found["schema_exists"]:
        # Not `if not exists`: that takes the right to make schemas, also where there is nothing to be made.
        # A name can't be a parameter; the settings let only letters, digits and underscores through.
        await connection.execute(f'create schema "{schema}"')
    await connection.execute(sql.CREATE_MIGRATIONS_TABLE)


async def _apply(connection: asyncpg.Connection, migrations: Iterable[sql.Migration]) -> list[sql.Migration]:
    applied = []
    for migration in migrations:
        recorded = (migration.version, migration.name, migration.compatible_with)
        if migration.in_no_transaction:
            for statement in migration.statements:
                await connection.execute(statement)
            await connection.execute(sql.RECORD_MIGRATION, *recorded)
        else:
            async with connection.transaction():
                await connection.execute(sql.LIMIT_MIGRATION_WAITS)
                await connection.execute(migration.text)
                await connection.execute(sql.RECORD_MIGRATION, *recorded)
        applied.append(migration)
    return applied
