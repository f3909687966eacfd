"""Finding a connection pooler: two connections to Postgres, used in turns, and what each of them leads to.

A session's lock belongs to a connection to Postgres, and a pooler gives such a connection to whoever comes next: a
worker would lose its locks, or others could not get them.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import asyncpg

import sql
from schemas.checks import Check
from worker.operations.doctor import ConnectionReadings, connections
from worker.sessions.database import IDLE_SESSION_TIMEOUT

_ROUNDS: Final = 3
_CLOSE_SECONDS: Final = 2.0
_LOST_STATEMENTS: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""What a prepared statement becomes whose connection was another one when it was prepared."""
_NOTHING_READ: Final = ConnectionReadings(announced=0, pids=(0,), limits_arrived=True, over_tcp=True)


async def look_at_connections(name: str, opened: Callable[[], Awaitable[asyncpg.Connection]]) -> Check:
    """Open two connections, as a worker's lanes are, and judge what was seen on them."""
    one = await opened()
    try:
        other = await opened()
        try:
            return await _judged(name, one, other)
        finally:
            await close_quietly(other)
    finally:
        await close_quietly(one)


async def close_quietly(connection: asyncpg.Connection) -> None:
    """Close a connection, within a limit: what it was for has been said."""
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        await connection.close(timeout=_CLOSE_SECONDS)


async def _judged(name: str, one: asyncpg.Connection, other: asyncpg.Connection) -> Check:
    try:
        seen = {one: [await _row(one)], other: [await _row(other)]}
        for _ in range(_ROUNDS):
            # While one is in a transaction, a pooler has to take another process for the other.
            for inside, outside in ((one, other), (other, one)):
                async with inside.transaction():
                    seen[inside].append(await _row(inside))
                    seen[outside].append(await _row(outside))
                    seen[inside].append(await _row(inside))
                seen[outside].append(await _row(outside))
                seen[inside].append(await _row(inside))
        readings = [_readings(connection, rows) for connection, rows in seen.items()]
        check = connections(name, *readings, lock_kept=True)
        # Of a pooled connection it could not be given back.
        kept = check.verdict == "failure" or await _lock_is_kept(one, other)
        return check if kept else connections(name, *readings, lock_kept=False)
    except _LOST_STATEMENTS:
        return connections(name, _NOTHING_READ, _NOTHING_READ, lock_kept=True, lost_statements=True)


async def _row(connection: asyncpg.Connection) -> asyncpg.Record:
    row = await connection.fetchrow(sql.CONNECTION_READINGS)
    assert row is not None  # noqa: S101 - for the type checker: it selects one row
    return row


def _readings(connection: asyncpg.Connection, rows: list[asyncpg.Record]) -> ConnectionReadings:
    return ConnectionReadings(
        announced=connection.get_server_pid(),
        pids=tuple(row["pid"] for row in rows),
        limits_arrived=all(row["idle_session_timeout"] == IDLE_SESSION_TIMEOUT for row in rows),
        over_tcp=all(row["over_tcp"] for row in rows),
    )


async def _lock_is_kept(one: asyncpg.Connection, other: asyncpg.Connection) -> bool:
    name = uuid.uuid4().hex
    await one.fetchrow(sql.TAKE_TRIAL_LOCK, name)
    async with other.transaction():
        await _row(other)
        held = await one.fetchval(sql.HAS_TRIAL_LOCK, name)
    return bool(held) and bool(await one.fetchval(sql.RELEASE_TRIAL_LOCK, name))
