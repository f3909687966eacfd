"""Reopening: making way for another attempt of a run that is stored as ERROR.

Only `teamturn dead replay` does it. A producer that sends a run_id again gets the stored reply, as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import asyncpg

import sql
from schemas.requests import RunRequest
from worker.sessions.database import translated


class Outcome(StrEnum):
    """What became of it."""

    UNKNOWN = "unknown"
    """Nothing is stored of the run: its request is executed when it is delivered."""
    ANSWERED = "answered"
    """It is stored, and not as ERROR: its request gets the stored reply."""
    FOREIGN = "foreign"
    """The run_id is another request's."""
    BUSY = "busy"
    """A worker is at a turn of the session."""
    REOPENED = "reopened"
    """Its request is executed when it is delivered, as the session's latest turn."""


@dataclass(frozen=True, slots=True)
class Reopening:
    """What became of it, or would."""

    outcome: Outcome
    attempt: int | None
    """Of a reopened run: the number of the attempt to come."""
    session_exists: bool
    """Of a reopened run: whether its session is still there; else it begins a new one."""


async def reopen(connection: asyncpg.Connection, request: RunRequest, *, only_look: bool = False) -> Reopening:
    """Reopen a request's run in one transaction under its session's lock; `only_look` changes nothing.

    The connection must be a direct one, and hold no lock of the session. Raises StatementRefused or StoreUnavailable.
    """
    target = request.target
    asked = (request.run_id, request.session_id, request.user_id, target.type.value, target.id, request.fingerprint)
    try:
        transaction = connection.transaction()
        await transaction.start()
        try:
            record = await connection.fetchrow(sql.REOPEN_RUN, *asked)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if only_look else transaction.commit())
        # A statement of its own, after the commit: else others would see the session as it was before.
        await connection.fetch(sql.UNLOCK_SESSIONS, [request.session_id])
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translated(error) from error
    assert record is not None  # noqa: S101 - for the type checker: a function with OUT parameters returns a row
    return Reopening(Outcome(record["outcome"]), record["attempt"], bool(record["session_exists"]))
