"""The stored session, as the view `sessions` shows it: fifteen columns in the documented order."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from schemas.ids import SessionType

JsonObject = dict[str, JsonValue]


class StoredSession(BaseModel):
    """A session with its runs. Times are unix seconds."""

    session_id: str
    session_type: SessionType
    agent_id: str | None
    team_id: str | None
    workflow_id: str | None
    user_id: str | None
    session_data: JsonObject | None
    agent_data: JsonObject | None
    team_data: JsonObject | None
    workflow_data: JsonObject | None
    metadata: JsonObject | None
    runs: list[JsonObject]
    summary: JsonObject | None
    created_at: int
    updated_at: int | None


class SessionOverview(BaseModel):
    """One line of a list of sessions."""

    session_id: str
    session_type: SessionType
    target_id: str | None
    user_id: str | None
    name: str | None
    runs: int
    """Members' runs are not counted."""
    tokens: int
    created_at: int
    updated_at: int | None
