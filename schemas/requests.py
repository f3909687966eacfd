"""The run request: what a producer publishes to have a turn taken.

Unknown fields are refused. So a new one is accepted a version before any producer of ours sends it: while workers are
upgraded, those of the last version are still there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AwareDatetime,
    Base64Encoder,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EncodedBytes,
    Field,
    JsonValue,
    StrictBool,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import override

from schemas.ids import Id, SessionType, Target

_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _StrictBase64(Base64Encoder):
    """Base64 as RFC 4648 has it: pydantic's own skips every character that is none of its alphabet."""

    @classmethod
    @override
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except ValueError:
            raise PydanticCustomError("base64_decode", "it is not base64") from None


class TextPart(_Strict):
    """A piece of text of the input."""

    type: Literal["text"]
    """Says that it is text."""
    text: StrictStr
    """The text."""


class BinaryPart(_Strict):
    """A file of the input: an image, a document, a sound. `data` is base64 on the wire."""

    type: Literal["binary"]
    """Says that it is a file."""
    media_type: Annotated[StrictStr, Field(min_length=3, max_length=255, pattern=r"^[^\s/]+/[^\s/]+$")]
    """Such as image/png."""
    data: Annotated[bytes, EncodedBytes(encoder=_StrictBase64)]
    """The file; base64 on the wire."""


InputPart = Annotated[TextPart | BinaryPart, Field(discriminator="type")]
"""A piece of text or a file."""
Input = StrictStr | Annotated[list[InputPart], Field(min_length=1)]
"""Text, or a list of at least one part."""


def text_of_input(given: Input) -> str:
    """Return the input's text; of several parts, the text parts, a line each."""
    if isinstance(given, str):
        return given
    return "\n".join(part.text for part in given if isinstance(part, TextPart))


def _rfc_3339(value: Any) -> Any:  # noqa: ANN401 - whatever a producer sent
    if not isinstance(value, datetime) and not (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        raise ValueError("a deadline is RFC 3339 text, such as 2030-01-31T12:00:00Z")
    return value


Deadline = Annotated[AwareDatetime, BeforeValidator(_rfc_3339)]
"""RFC 3339, with an offset."""


class OnBusy(StrEnum):
    """What to do when an earlier request of the session is unfinished."""

    ENQUEUE = "enqueue"
    """Wait for it."""
    REJECT = "reject"
    """Be refused, at once."""
    INTERRUPT = "interrupt"
    """Cancel it, and then go on."""
    COALESCE = "coalesce"
    """Wait for it; those that wait together, of one target, user and `stream`, become one turn."""


class Decision(_Strict):
    """What a human has decided about one call that a paused run waits for."""

    tool_call_id: Id
    """The call's, as in the reply's `approvals`."""
    approved: StrictBool
    """Whether it is made; else the model is told that it was denied."""
    message: Annotated[StrictStr, Field(max_length=10_000)] | None = None
    """Of a denied one: what the model is told."""


def _without_input(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema["required"] if name != "input"]
    schema["anyOf"] = [{"required": ["input"]}, {"required": ["continues", "decisions"]}]


class RunRequest(_Strict):
    """One request to run a team, agent or workflow. Unknown fields are refused.

    `run_id` is the idempotency key: the same one with the same content gets the same reply and is not executed again.
    A missing `session_id` is the run_id; a missing `run_id` is the AMQP message_id, filled in where it is received.
    """

    model_config = ConfigDict(json_schema_extra=_without_input)

    run_id: Id
    """The idempotency key, global: use a UUID."""
    session_id: Id = ""
    """The conversation; absent, it is the run_id."""
    team_id: Id | None = None
    """The team that takes the turn. Exactly one of this and the next two; a session keeps what it began with."""
    agent_id: Id | None = None
    """The agent that takes the turn."""
    workflow_id: Id | None = None
    """The workflow that takes the turn."""
    user_id: Id | None = None
    """Whose session it is; anyone else is refused."""
    input: Input
    """Text, or a list of parts. A request that `continues` a run needs none: the run has its own."""
    session_state: dict[str, JsonValue] = Field(default_factory=dict)
    """Merged over the stored state before the turn."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    """Merged into the session's metadata."""
    stream: StrictBool = False
    """Whether events are published while the turn runs."""
    deadline: Deadline | None = None
    """By Postgres's clock: not started by then, it is refused; running then, it ends as ERROR."""
    on_busy: OnBusy = OnBusy.ENQUEUE
    """What to do when an earlier request of the session is unfinished."""
    continues: Id | None = None
    """The paused run of the session that it goes on with, from what that has recorded."""
    decisions: Annotated[tuple[Decision, ...], Field(max_length=1000)] = ()
    """What was decided about the calls which that run waits for. One that is left out is asked for again."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, data: Any) -> Any:  # noqa: ANN401 - whatever a producer sent
        if not isinstance(data, dict):
            return data
        if data.get("session_id") is None and "run_id" in data:
            data = {**data, "session_id": data["run_id"]}
        if data.get("continues") is not None and "input" not in data:
            data = {**data, "input": ""}
        return data

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        named = [name for name in ("team_id", "agent_id", "workflow_id") if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) or "none"
            raise ValueError(f"exactly one of team_id, agent_id and workflow_id is required; found {found}")
        return self

    @model_validator(mode="after")
    def _decides_what_it_continues(self) -> Self:
        if (self.continues is None) != (not self.decisions):
            raise ValueError("continues and decisions go together: the paused run, and what was decided")
        if len({decision.tool_call_id for decision in self.decisions}) != len(self.decisions):
            raise ValueError("decisions has a tool_call_id twice")
        return self

    @cached_property
    def target(self) -> Target:
        """The team, agent or workflow that the request names."""
        if self.team_id is not None:
            return Target(type=SessionType.TEAM, id=self.team_id)
        if self.agent_id is not None:
            return Target(type=SessionType.AGENT, id=self.agent_id)
        return Target(type=SessionType.WORKFLOW, id=self.workflow_id or "")

    @property
    def text(self) -> str:
        """The input's text; of several parts, the text parts, a line each."""
        return text_of_input(self.input)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal when two requests ask for the same.

        Independent of key order, white space and of defaults given or left out, so that a field added in a later
        version does not make a redelivered request look different.
        """
        asked = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).digest()
