"""The run reply: what a consumer of results reads. Stored as bytes, so that a redelivery gets the same ones."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from schemas.errors import ErrorCode, read_code
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

    code: Annotated[ErrorCode, BeforeValidator(read_code)]
    """What happened; a later version may add codes."""
    message: str
    """The same in a sentence, for people."""
    retryable: bool = False
    """Worth sending again, under a new run_id."""


class RunMetrics(BaseModel):
    """What a run took. Durations are in seconds."""

    input_tokens: int = 0
    """Tokens that models read, members' included."""
    output_tokens: int = 0
    """Tokens that models wrote."""
    total_tokens: int = 0
    """Both together."""
    model_requests: int = 0
    """Requests that models answered; those that failed and were made again are not counted."""
    tool_calls: int = 0
    """Calls of tools that succeeded; delegations are among them."""
    duration: float = 0.0
    """How long the turn took."""
    queue_time: float = 0.0
    """How long the request waited before it."""


class MemberResponse(BaseModel):
    """What one member of the team answered to the leader; of a workflow, what one step ended with."""

    member_id: str
    """The member's id; the step's name."""
    content: JsonValue = None
    """The answer; null if there is none."""
    status: RunStatus
    """How the member's run ended."""


class Approval(BaseModel):
    """A call of a tool that a paused run waits for: somebody is to approve or to deny it."""

    tool_call_id: str
    """What a decision names it by."""
    tool: str
    """The tool's name."""
    arguments: JsonValue = None
    """What it would be called with."""
    member_id: str | None = None
    """The member whose call it is; null: the leader's."""
    metadata: dict[str, JsonValue] | None = None
    """What the tool says of it."""


class RunReply(BaseModel):
    """The answer to one run request."""

    model_config = ConfigDict(extra="ignore")

    run_id: str | None
    """The request's; None, as the next two, only where what was sent was no request and had none."""
    session_id: str | None
    """The session's id; the request's run_id if it named none."""
    session_type: SessionType | None
    """Of what kind the target is."""
    team_id: str | None = None
    """As in the request; so are the next three."""
    agent_id: str | None = None
    """The agent, if it is one's session."""
    workflow_id: str | None = None
    """The workflow, if it is one's session."""
    user_id: str | None = None
    """Whose session it is."""
    status: RunStatus
    """How the run ended."""
    content: JsonValue = None
    """The answer: text, or JSON for structured output."""
    member_responses: list[MemberResponse] = Field(default_factory=list)
    """What members answered, or the steps of a workflow ended with, in order."""
    turn: int | None = None
    """The session's turn number, from 1; None when REJECTED."""
    approvals: list[Approval] = Field(default_factory=list, exclude_if=lambda approvals: not approvals)
    """Of a PAUSED run: the calls that it waits for. Left out where there are none."""
    answered_by: str | None = Field(default=None, exclude_if=lambda run_id: run_id is None)
    """The run whose turn this request became part of (`on_busy: coalesce`); left out: it had one of its own."""
    attempt: int = 1
    """Higher than 1 where a redelivered request had to be started again."""
    metrics: RunMetrics = Field(default_factory=RunMetrics)
    """What the run took."""
    error: RunError | None = None
    """Why it failed or was refused, or why a COMPLETED one comes without its answer; else null."""
    created_at: int
    """When the run was begun: unix seconds."""
    completed_at: int
    """When it ended: unix seconds."""
