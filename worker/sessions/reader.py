"""Reading stored sessions, for people and programs that look at them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import asyncpg
from pydantic import JsonValue
from pydantic_core import from_json

import sql
from schemas.ids import SessionType
from schemas.sessions import SessionOverview, StoredSession, object_of

_OBJECTS: Final = frozenset({"session_data", "agent_data", "team_data", "workflow_data", "metadata", "summary"})
_RUNS_AT_ONCE: Final = 50


class SortedBy(StrEnum):
    """In which order sessions are listed."""

    ACTIVE = "active"
    CREATED = "created"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions are meant: those that all of this is true of."""

    user_id: str | None = None
    session_type: SessionType | None = None
    target_id: str | None = None
    since: int | None = None
    """Active then or later: unix seconds."""
    text: str | None = None
    """In their name or id, in upper or lower case."""


async def list_sessions(
    connection: asyncpg.Connection,
    chosen: SessionFilter = SessionFilter(),
    *,
    sorted_by: SortedBy = SortedBy.ACTIVE,
    limit: int | None = None,
    after: int = 0,
) -> list[SessionOverview]:
    """Return the sessions that are meant, at most `limit` of them after the first so many."""
    session_type = None if chosen.session_type is None else chosen.session_type.value
    of = (chosen.user_id, session_type, chosen.target_id, chosen.since, chosen.text)
    records = await connection.fetch(sql.LIST_SESSIONS, *of, sorted_by.value, limit, after)
    return [SessionOverview.model_validate(dict(record)) for record in records]


async def show_session(
    connection: asyncpg.Connection, session_id: str, *, last: int | None = None
) -> StoredSession | None:
    """Return one session in its fifteen fields, or None; of its turns the last so many, or all.

    Read run by run: a session may be larger than what Postgres holds in one value.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        record = await connection.fetchrow(sql.SHOW_SESSION, session_id)
        if record is None:
            return None
        runs: list[JsonValue] = []
        turns = 0
        async for run in _latest_first(connection, session_id):
            turns += is_turn(run)
            if last is not None and turns > last:
                break
            runs.append(run)
    runs.reverse()
    fields = {
        name: from_json(value) if name in _OBJECTS and value is not None else value for name, value in record.items()
    }
    return StoredSession.model_validate(fields | {"runs": runs})


def is_turn(run: JsonValue) -> bool:
    """Whether a stored run is a turn of its session, and no member's."""
    return object_of(run).get("parent_run_id") is None


async def _latest_first(connection: asyncpg.Connection, session_id: str) -> AsyncIterator[JsonValue]:
    for text in (sql.SESSION_RUNS, sql.SESSION_RUNS_OF_AGNO_2):
        async for record in connection.cursor(text, session_id, prefetch=_RUNS_AT_ONCE):
            yield from_json(record["run_data"])
