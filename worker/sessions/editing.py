"""What people do to stored sessions: name them, and delete them."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import Final

import asyncpg

import sql

LONGEST_NAME_CHARACTERS: Final = 255
_LOOK_SECONDS: Final = 0.25


class Deleted(StrEnum):
    """What became of a session that was to be deleted."""

    DELETED = "deleted"
    UNKNOWN = "unknown"
    BUSY = "busy"
    """A turn of it is being executed: nothing was done."""


async def rename_session(connection: asyncpg.Connection, session_id: str, name: str) -> bool:
    """Name a session, also while a turn of it runs. Return whether there is such a session.

    Raises ValueError for what is no name: empty, longer than 255 characters, or with control characters.
    """
    if not 0 < len(name.strip()) <= LONGEST_NAME_CHARACTERS or not name.isprintable():
        raise ValueError(f"a session's name has 1 to {LONGEST_NAME_CHARACTERS} characters that can be printed")
    return await connection.fetchval(sql.RENAME_SESSION, session_id, name) is not None


async def delete_session(connection: asyncpg.Connection, session_id: str, *, wait_seconds: float = 0) -> Deleted:
    """Delete a session with its runs, under its lock; wait so long for a turn that is being executed.

    The replies of its runs stay, so that a request that is delivered again is answered and not executed again. A
    request that waits begins a new session. The connection must be a direct one.
    """
    until = time.monotonic() + wait_seconds
    while not await connection.fetchval(sql.LOCK_SESSION, session_id):
        if time.monotonic() >= until:
            return Deleted.BUSY
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        found = await connection.fetchval(sql.DELETE_SESSION, session_id)
    finally:
        await connection.fetch(sql.UNLOCK_SESSIONS, [session_id])
    return Deleted.UNKNOWN if found is None else Deleted.DELETED
