"""What people do to stored sessions: name them, and delete them."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import Any, Final

import asyncpg

import sql
from schemas.ids import SessionType, Target
from worker.replies.answers import body_of, of_deleted

LONGEST_NAME_CHARACTERS: Final = 255
_LOOK_SECONDS: Final = 0.25
_RECEIPTS_AT_ONCE: Final = 1000


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


async def delete_session(
    connection: asyncpg.Connection, session_id: str, *, wait_seconds: float = 0, with_receipts: bool = False
) -> Deleted:
    """Delete a session with its runs, under its lock; wait so long for a turn that is being executed.

    Of its receipts only the replies go: a request that is delivered again is told that the session was deleted, and is
    not executed again. `with_receipts`: they go as well, and it would be. A request that waits begins a new session.
    The connection must be a direct one.
    """
    until = time.monotonic() + wait_seconds
    while not await connection.fetchval(sql.LOCK_SESSION, session_id):
        if time.monotonic() >= until:
            return Deleted.BUSY
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        async with connection.transaction():
            gone = await connection.fetchrow(sql.DELETE_SESSIONS, [session_id])
            await _forget_replies(connection, sql.RECEIPTS_OF_SESSION, session_id, with_receipts=with_receipts)
    finally:
        await connection.fetch(sql.UNLOCK_SESSIONS, [session_id])
    return Deleted.DELETED if gone is not None and gone["sessions"] else Deleted.UNKNOWN


async def forget_user(connection: asyncpg.Connection, user_id: str, *, with_receipts: bool = False) -> int:
    """Delete what is kept of a user beside the sessions: replies to what was refused, or to runs of deleted sessions.

    Return how many receipts there were; they keep their ids, or go as well (`with_receipts`).
    """
    async with connection.transaction():
        await connection.execute(sql.DELETE_CANCELLATIONS, user_id)
        return await _forget_replies(connection, sql.RECEIPTS_OF_USER, user_id, with_receipts=with_receipts)


async def _forget_replies(connection: asyncpg.Connection, query: str, of: str, *, with_receipts: bool) -> int:
    """Empty or delete the receipts that a query finds, a page at a time."""
    last: str | None = None
    number = 0
    while page := await connection.fetch(query, of, last, _RECEIPTS_AT_ONCE):
        last = page[-1]["run_id"]
        number += len(page)
        run_ids = [record["run_id"] for record in page]
        if with_receipts:
            await connection.execute(sql.DELETE_RECEIPTS, run_ids)
        else:
            await connection.execute(sql.EMPTY_RECEIPTS, run_ids, [_reply_after_deletion(record) for record in page])
    return number


def _reply_after_deletion(receipt: Any) -> bytes:  # noqa: ANN401 - an asyncpg Record
    target = Target.model_construct(type=SessionType(receipt["target_type"]), id=receipt["target_id"])
    ids = (receipt["run_id"], receipt["session_id"], receipt["user_id"])
    return body_of(of_deleted(*ids, target, at=receipt["created_at"]))
