"""The run reply: what a consumer of results reads. Stored as bytes, so that a redelivery gets the same ones."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.errors import ErrorCode
from schemas.ids import SessionType

REPLY_TYPE: Final = "run.reply"
"""The AMQP `type` of a reply."""


class RunStatus(StrEnum):
    """How a run ended. Upper case: in the stored runs Agno reads no other spelling."""

    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"
    REJECTED = "REJECTED"
    """Never executed, and not stored as a run."""


class RunError(BaseModel):
    """Why a run failed or was refused."""

    code: ErrorCode
    message: str
    retryable: bool = False
    """Worth sending again, under a new run_id."""


class RunMetrics(BaseModel):
    """What a run took. Durations are in seconds."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    model_requests: int = 0
    tool_calls: int = 0
    duration: float = 0.0
    queue_time: float = 0.0


class MemberResponse(BaseModel):
    """What one member of the team answered to the leader."""

    member_id: str
    content: JsonValue = None
    status: RunStatus


class RunReply(BaseModel):
    """The answer to one run request."""

    model_config = ConfigDict(extra="ignore")

    run_id: str | None
    """The request's; None, as the next two, only where what was sent was no request and had none."""
    session_id: str | None
    session_type: SessionType | None
    team_id: str | None = None
    agent_id: str | None = None
    workflow_id: str | None = None
    user_id: str | None = None
    status: RunStatus
    content: JsonValue = None
    member_responses: list[MemberResponse] = Field(default_factory=list)
    turn: int | None = None
    """The session's turn number, from 1; None when REJECTED."""
    attempt: int = 1
    metrics: RunMetrics = Field(default_factory=RunMetrics)
    error: RunError | None = None
    created_at: int
    completed_at: int
