"""A turn: what an executor is given, what it may change, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import JsonValue

from schemas.ids import Target
from schemas.replies import RunStatus
from schemas.requests import Input, text_of_input
from worker.errors import TurnFailed
from worker.executors.json_values import json_text
from worker.executors.steps import Steps

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PastRun:
    """A completed run of the session."""

    run_id: str
    input: str
    """The input's text."""
    content: JsonValue
    created_at: int
    parts: Input | None = None
    """The input as it was sent, where it was more than text."""

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
    input: Input
    created_at: int
    content: JsonValue = None
    status: RunStatus = RunStatus.CANCELLED
    """CANCELLED until it has ended: a turn that is cut off leaves it so."""
    error: TurnFailed | None = None
    """Why it failed, where that has a code."""
    messages: list[JsonObject] = field(default_factory=list)
    """What it and its model said, as far as it came; see Turn.messages."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of a workflow ended with."""

    name: str
    kind: str
    """What did it: "agent", "team" or "function"."""
    status: RunStatus
    content: JsonValue = None
    run_id: str | None = None
    """The run of the agent or team that did it; None for a function."""


@dataclass(slots=True)
class SessionLabel:
    """The session's name, in an object of its own: all parts of a turn share it."""

    name: str | None = None


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
    label: SessionLabel = field(default_factory=SessionLabel, repr=False)
    summary: str | None = None
    """The summary of the session so far, where its team keeps one; it covers what is older than the history."""
    results: Mapping[str, JsonValue] = field(default_factory=dict)
    """In a step of a workflow: what the steps before it ended with, by name."""
    usage: Usage = field(default_factory=Usage)
    member_runs: list[MemberRun] = field(default_factory=list)
    step_results: list[StepResult] = field(default_factory=list)
    """In a workflow: its steps so far."""
    messages: list[JsonObject] = field(default_factory=list)
    """What was said in this run, with roles as Agno stores them; empty: its input and its answer say it all."""
    state_lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held by one tool at a time of those that reach the state from a thread of their own."""

    @property
    def session_name(self) -> str | None:
        """What people see the session under; a new one is stored if the turn completes."""
        return self.label.name

    @session_name.setter
    def session_name(self, name: str | None) -> None:
        self.label.name = name

    async def step(self, name: str, fn: Callable[[], JsonValue | Awaitable[JsonValue]]) -> JsonValue:
        """Run `fn` as a step of this turn, and return its result.

        `fn` returns a JSON value, or an awaitable of one; anything else ends the turn with `invalid_result`. A name
        may be used again: its uses are counted.
        """
        return await self.steps.run(name, fn)

    async def emit(self, event: JsonValue) -> None:
        """Publish an event to those who watch the run; without `stream: true` in the request nobody does."""

    def part(self, run_id: str, given: Input, messages: list[JsonObject]) -> Turn:
        """Return this turn as a member or a step takes part in it: the same session and state, a run of its own."""
        return replace(self, run_id=run_id, input=text_of_input(given), parts=given, messages=messages)


class Summarizer(Protocol):
    """Whatever writes the summary of a session."""

    async def summarize(self, previous: str | None, runs: Sequence[PastRun]) -> tuple[str, Usage]:
        """Return the summary of what `previous` summarizes and the runs after it, and what it cost."""


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

    @property
    def summarizer(self) -> Summarizer | None:
        """What keeps the summary of its sessions up to date, if anything does."""

    async def run(self, turn: Turn) -> JsonValue:
        """Take the turn and return its answer. Raise TurnFailed, or anything else, if there is none."""
