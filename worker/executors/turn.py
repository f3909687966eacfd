"""A turn: what an executor is given, what it may change, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from schemas.ids import Target
from schemas.replies import RunStatus
from schemas.requests import Input
from worker.executors.json_values import json_text
from worker.executors.steps import Steps


@dataclass(frozen=True, slots=True)
class PastRun:
    """A completed run of the session."""

    run_id: str
    input: str
    content: JsonValue
    created_at: int

    @property
    def content_text(self) -> str:
        """The answer as text; JSON content as its JSON."""
        return text_of(self.content)


def text_of(content: JsonValue) -> str:
    """Return content as text: a string as it is, anything else as JSON, nothing as ''."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json_text(content)


@dataclass(slots=True)
class Usage:
    """What a turn used so far, members included."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_requests: int = 0
    tool_calls: int = 0


@dataclass(slots=True)
class MemberRun:
    """A member's part of a team's turn; stored as a run of its own below the one it belongs to."""

    run_id: str
    parent_run_id: str
    member: Target
    name: str
    input: str
    created_at: int
    content: JsonValue = None
    status: RunStatus = RunStatus.CANCELLED
    """CANCELLED until it has ended: a turn that is cut off leaves it so."""


@dataclass(slots=True)
class Turn:
    """One turn of a session, as an executor sees it.

    `session_state` is a dict of this turn's own: change it as you like; it is stored if the turn completes.
    """

    run_id: str
    session_id: str
    user_id: str | None
    input: str
    """The input's text; of several parts, the text parts, a line each."""
    parts: Input
    """The input as it was sent: a string, or a list of text and binary parts."""
    metadata: dict[str, JsonValue]
    attempt: int
    history: tuple[PastRun, ...]
    """The last `history_runs` completed runs of the session, oldest first."""
    session_state: dict[str, JsonValue]
    steps: Steps = field(repr=False)
    usage: Usage = field(default_factory=Usage)
    member_runs: list[MemberRun] = field(default_factory=list)

    async def step(self, name: str, fn: Callable[[], JsonValue | Awaitable[JsonValue]]) -> JsonValue:
        """Run `fn` as a step of this turn, and return its result.

        `fn` returns a JSON value, or an awaitable of one; anything else ends the turn with `invalid_result`. A name
        may be used again: its uses are counted.
        """
        return await self.steps.run(name, fn)

    async def emit(self, event: JsonValue) -> None:
        """Publish an event to those who watch the run; without `stream: true` in the request nobody does."""


class Executor(Protocol):
    """Whatever can take a turn. Built once, at the start; it runs many turns at once and keeps nothing of them."""

    @property
    def target(self) -> Target:
        """What requests name it by."""

    @property
    def name(self) -> str:
        """What people call it; stored with its runs."""

    @property
    def history_runs(self) -> int | None:
        """How many completed runs of the session a turn is given; None: all."""

    @property
    def model_name(self) -> str | None:
        """The model that answers, if there is one; stored with the session."""

    async def run(self, turn: Turn) -> JsonValue:
        """Take the turn and return its answer. Raise TurnFailed, or anything else, if there is none."""
