"""Reading stored sessions, for people and programs that look at them."""

from __future__ import annotations

import asyncpg
from pydantic_core import from_json

import sql
from schemas.sessions import SessionOverview, StoredSession


async def list_sessions(connection: asyncpg.Connection, *, limit: int) -> list[SessionOverview]:
    """Return the sessions with the latest activity first."""
    records = await connection.fetch(sql.LIST_SESSIONS, limit)
    return [SessionOverview.model_validate(dict(record)) for record in records]


async def show_session(connection: asyncpg.Connection, session_id: str) -> StoredSession | None:
    """Return one session in its fifteen fields, or None."""
    record = await connection.fetchrow(sql.SHOW_SESSION, session_id)
    if record is None:
        return None
    objects = {"session_data", "agent_data", "team_data", "workflow_data", "metadata", "runs", "summary"}
    return StoredSession.model_validate(
        {
            name: from_json(value) if name in objects and value is not None else value
            for name, value in dict(record).items()
        }
    )
