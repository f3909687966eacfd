"""The stored session, as the view `sessions` shows it: fifteen columns in the documented order."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from schemas.ids import SessionType

JsonObject = dict[str, JsonValue]


def object_of(found: JsonValue) -> JsonObject:
    """Return an object as it is, and anything else as an empty one: other programs write sessions, too."""
    return found if isinstance(found, dict) else {}


class StoredSession(BaseModel):
    """A session with its runs. Times are unix seconds. What should be an object is whatever JSON is stored there."""

    session_id: str
    session_type: SessionType | str
    agent_id: str | None
    team_id: str | None
    workflow_id: str | None
    user_id: str | None
    session_data: JsonValue
    agent_data: JsonValue
    team_data: JsonValue
    workflow_data: JsonValue
    metadata: JsonValue
    runs: list[JsonValue]
    summary: JsonValue
    created_at: int
    updated_at: int | None


class SessionOverview(BaseModel):
    """One line of a list of sessions."""

    session_id: str
    session_type: SessionType | str
    target_id: str | None
    user_id: str | None
    name: str | None
    runs: int
    """Members' runs are not counted."""
    tokens: int
    created_at: int
    updated_at: int | None


class Pruned(BaseModel):
    """What pruning has deleted, or would."""

    sessions: int = 0
    runs: int = 0
    """Members' runs are counted."""
    receipts: int = 0
    """What would have answered requests that are delivered again."""
    unfinished: int = 0
    """Runs that were begun and never answered, whose journal is gone."""
    bytes: int = 0
    """What that took in the tables, without indexes."""
    held: int = 0
    """Sessions that were left alone, since a turn of them was being executed."""
    dry_run: bool = False
    """Nothing was done; this is what would be."""

    def __add__(self, other: Pruned) -> Pruned:
        """Return both together."""
        return Pruned(
            sessions=self.sessions + other.sessions,
            runs=self.runs + other.runs,
            receipts=self.receipts + other.receipts,
            unfinished=self.unfinished + other.unfinished,
            bytes=self.bytes + other.bytes,
            held=self.held + other.held,
        )
