"""Events of a run that is watched (`stream: true`): what consumers of `{prefix}.events` read."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from schemas.ids import SessionType, Target
from schemas.replies import RunReply, RunStatus

EVENT_TYPE: Final = "run.event"
"""The AMQP `type` of an event."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")

    run_id: str
    """The request's."""
    session_id: str
    """The session's id."""
    session_type: SessionType
    """Of what kind the target is."""
    target_id: str
    """The team, agent or workflow."""
    attempt: int
    """Which attempt of the run it is of."""
    number: int
    """From 1, one more for each event of the attempt: order by attempt and number; one that is missing was dropped."""
    time: float
    """When it happened: unix seconds."""
    member_run_id: str | None = None
    """Of a member's part of the turn: the member's own run; else null."""


class RunStarted(_Event):
    """An attempt of the run has begun."""

    type: Literal["run_started"] = "run_started"
    resumed_behind: str | None = None
    """The last recorded step of an attempt before, behind which this one goes on; null: from the start."""


class ContentDelta(_Event):
    """A piece of an answer, as the model writes it. What a resumed attempt has recorded is not written again."""

    type: Literal["content_delta"] = "content_delta"
    text: str
    """The piece."""


class ToolStarted(_Event):
    """A tool is called."""

    type: Literal["tool_call_started"] = "tool_call_started"
    tool: str
    """The tool's name."""
    call_id: str
    """The call's id; the same when it has finished."""
    arguments: JsonValue = None
    """What it is called with."""


class ToolFinished(_Event):
    """A call of a tool has ended."""

    type: Literal["tool_call_finished"] = "tool_call_finished"
    tool: str
    """The tool's name."""
    call_id: str
    """The call's id."""
    failed: bool = False
    """Whether the model is told that it failed, or to try again."""


class MemberStarted(_Event):
    """A member has been given a task."""

    type: Literal["member_started"] = "member_started"
    member_id: str
    """The member's id."""
    parent_run_id: str
    """The run that its part belongs to."""


class MemberFinished(_Event):
    """A member's part has ended."""

    type: Literal["member_finished"] = "member_finished"
    member_id: str
    """The member's id."""
    status: RunStatus
    """How it ended."""


class RunJoined(_Event):
    """The request has become part of another's turn (`on_busy: coalesce`): that run's events tell of it."""

    type: Literal["run_joined"] = "run_joined"
    answered_by: str
    """The run whose turn it is."""


class StateChanged(_Event):
    """A step has changed the session's state."""

    type: Literal["state_changed"] = "state_changed"
    changed: dict[str, JsonValue] = Field(default_factory=dict)
    """The keys that have other values now, with them."""
    removed: list[str] = Field(default_factory=list)
    """The keys that are gone."""


class Custom(_Event):
    """What an executor tells with `turn.emit`."""

    type: Literal["custom"] = "custom"
    data: JsonValue = None
    """What it is."""


class RunFinished(_Event):
    """The run is stored; the last event of it.

    Where its request is delivered again, it is told again, alone, as if of a further attempt.
    """

    type: Literal["run_finished"] = "run_finished"
    reply: RunReply
    """The reply, as it is published."""


RunEvent = Annotated[
    RunStarted
    | ContentDelta
    | ToolStarted
    | ToolFinished
    | MemberStarted
    | MemberFinished
    | RunJoined
    | StateChanged
    | Custom
    | RunFinished,
    Field(discriminator="type"),
]
"""Any of them."""

RUN_EVENT: Final = TypeAdapter[RunEvent](RunEvent)
"""Reads an event: `RUN_EVENT.validate_json(body)`."""


def event_key(target: Target, session_id: str, run_id: str) -> str:
    """Return the routing key of a run's events: `<kind>.<target>.<session>.<run>`, each part made safe and short.

    An id of up to 60 letters, digits, `_` and `-` of ASCII is itself; of any other one it is the first 32 hex digits of
    its SHA-256. So a run is watched by `*.*.*.<run>`, a session by `*.*.<session>.*`, a team by `team.<id>.*.*`, and
    everything by `#`.
    """
    return ".".join([target.type.value, *(key_part(one) for one in (target.id, session_id, run_id))])


def key_part(part: str) -> str:
    """Return an id as a part of a routing key."""
    if _PLAIN.fullmatch(part):
        return part
    return hashlib.sha256(part.encode()).hexdigest()[:32]
