"""A turn: what an executor is given, what it may change, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from pydantic import JsonValue

from schemas.ids import Target
from schemas.replies import RunStatus
from schemas.requests import Input, text_of_input
from worker.errors import TurnFailed
from worker.executors.events import Events
from worker.executors.json_values import as_json, json_text
from worker.executors.pauses import Origin
from worker.executors.steps import Steps

JsonObject = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """A completed run of the session."""

    run_id: str
    """The run's id."""
    input: str
    """The input's text."""
    content: Any
    """The answer: text, or JSON."""
    created_at: int
    """When it was begun: unix seconds."""
    parts: Input | None = None
    """The input as it was sent, where it was more than text."""

    @property
    def content_text(self) -> str:
        """The answer as text; JSON content as its JSON."""
        return text_of(self.content)


@dataclass(frozen=True, slots=True)
class TurnContext:
    """What of its session a turn is given: recorded with its first step, and given again to a later attempt."""

    started_at: datetime
    """When the first attempt began, by Postgres's clock."""
    history: tuple[PastRun, ...] = ()
    """The last completed runs of the session, oldest first."""
    summary: str | None = None
    """The session's summary."""

    def as_json(self) -> JsonValue:
        """Return it as it is recorded: of the history, the ids."""
        return {
            "started_at": self.started_at.isoformat(),
            "history": [run.run_id for run in self.history],
            "summary": self.summary,
        }


def text_of(content: JsonValue) -> str:
    """Return content as text: a string as it is, anything else as JSON, nothing as ''."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json_text(content)


@dataclass(slots=True)
class Usage:
    """What a turn used, members included."""

    input_tokens: int = 0
    """Tokens that models read."""
    output_tokens: int = 0
    """Tokens that models wrote."""
    model_requests: int = 0
    """Requests that models answered."""
    tool_calls: int = 0
    """Calls of tools that succeeded."""


@dataclass(slots=True)
class MemberRun:
    """A member's part of a team's turn; stored as a run of its own below the one it belongs to."""

    run_id: str
    """The same in every attempt of the turn."""
    parent_run_id: str
    """The run that it is part of."""
    member: Target
    """The agent or team that took it."""
    name: str
    """What people call the member."""
    input: Input
    """The member's task."""
    created_at: int
    """When it was begun: unix seconds."""
    content: JsonValue = None
    """The member's answer."""
    status: RunStatus = RunStatus.CANCELLED
    """CANCELLED until it has ended: a turn that is cut off leaves it so."""
    error: TurnFailed | None = None
    """Why it failed, where that has a code."""
    messages: list[JsonObject] = field(default_factory=list)
    """What it and its model said, as far as it came; see Turn.messages."""
    details: JsonObject = field(default_factory=dict, repr=False)
    """See Turn.details."""
    origin_id: str = field(default="", repr=False)
    """What its id was when the turn was begun that this one goes on with, or is: its steps are found by it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of a workflow ended with."""

    name: str
    """The step's name."""
    kind: str
    """What did it: "agent", "team" or "function"."""
    executor: str
    """What people call that: the agent's, the team's or the function's name."""
    status: RunStatus
    """How it ended."""
    content: JsonValue = None
    """Its result."""
    run_id: str | None = None
    """The run of the agent or team that did it; None for a function."""


class StateLock:
    """Keeps tools that change the state from a thread apart from each other, and from all that see the state."""

    def __init__(self) -> None:
        self._alone = asyncio.Lock()
        self._sharing = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold it with others that share it. Who waits to be alone is not waited for: those there may need this one."""
        async with self._alone:
            self._sharing += 1
            self._nobody.clear()
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self._nobody.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold it alone."""
        await self._alone.acquire()
        while self._sharing:
            self._alone.release()
            await self._nobody.wait()
            await self._alone.acquire()
        try:
            yield
        finally:
            self._alone.release()


@dataclass(slots=True)
class SharedSession:
    """What of the session all parts of a turn share, in an object of its own: each may put another value in its place.

    The state, the name, and the lock of what changes them.
    """

    state: dict[str, Any]
    name: str | None = None
    lock: StateLock = field(default_factory=StateLock, repr=False)


@dataclass(slots=True)
class Turn:
    """One turn of a session, as an executor sees it."""

    run_id: str
    """The request's run_id; in a member's part of the turn, the member's own."""
    session_id: str
    """The session that the turn is of."""
    user_id: str | None
    """Whose session it is; None: nobody's."""
    input: str
    """The input's text; of several parts, the text parts, a line each."""
    parts: Input
    """The input as it was sent: a string, or a list of text and binary parts."""
    metadata: dict[str, Any]
    """The session's metadata, with the request's merged into it."""
    attempt: int
    """Which attempt of the run this is, from 1."""
    started_at: datetime
    """When its first attempt began, by Postgres's clock: the same in every attempt. An instruction that tells the time
    takes it from here, so that a resumed turn asks the same."""
    history: tuple[PastRun, ...]
    """The last `history_runs` completed runs of the session, oldest first."""
    session: SharedSession
    """What all parts of the turn share; `session_state` and `session_name` are of it."""
    steps: Steps = field(repr=False)
    summary: str | None = None
    """The session's summary as it was stored when the turn began; None: there is none, or the team keeps none. It is
    written after a reply, and may be some turns behind: the history then has the runs too that it does not cover."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """In a step of a workflow: what the steps before it ended with, by name."""
    usage: Usage = field(default_factory=Usage)
    """What the turn used, members included; of a team, an agent or a workflow it is filled in at the turn's end, and
    zeros before. An `@executor` adds to it what the reply is to say."""
    member_runs: list[MemberRun] = field(default_factory=list)
    """What members did in this turn so far."""
    step_results: list[StepResult] = field(default_factory=list)
    """In a workflow: its steps so far."""
    messages: list[JsonObject] = field(default_factory=list)
    """What was said in this run, with roles as Agno stores them; empty: its input and its answer say it all."""
    whole_history: tuple[JsonObject, ...] = field(default=(), repr=False)
    """The runs of `history` as they are stored, each after its members' runs; for an executor that asks for it. Of
    very long ones the last that fit into 16 MiB."""
    details: JsonObject = field(default_factory=dict, repr=False)
    """What is stored of the run beside what teamturn knows of it, in Agno's layout; most executors leave none."""
    events: Events = field(default_factory=Events, repr=False)
    """What is told of the turn while it goes on."""
    origin: Origin | None = field(default=None, repr=False)
    """What the turn was begun as that this one goes on with, and what was decided since; None: it was begun itself."""
    origin_id: str = field(default="", repr=False)
    """The run_id that this part had in it; else its own."""
    written: list[str] = field(default_factory=list, repr=False)
    """Of a watched run: what its model has written of the answer that it is at, piece by piece."""
    id_seed: str = field(default="", repr=False)
    """What the ids of members' runs are made from, the same in every attempt; only who knows the request knows it."""

    @property
    def session_state(self) -> dict[str, Any]:
        """The session's state, with the request's merged over it: a dict of this turn's own.

        Change it as you like, or put another in its place; it is stored if the turn completes.
        """
        return self.session.state

    @session_state.setter
    def session_state(self, state: dict[str, Any]) -> None:
        self.session.state = state

    @property
    def session_name(self) -> str | None:
        """What people see the session under, in 1 to 255 characters; a new one is stored if the turn completes.

        None, in a session without a name or set by the turn, changes nothing.
        """
        return self.session.name

    @session_name.setter
    def session_name(self, name: str | None) -> None:
        self.session.name = name

    async def step(self, name: str, fn: Callable[[], Any], *, repeatable: bool = False) -> Any:  # noqa: ANN401 - whatever `fn` returns, as plain JSON
        """Run `fn` as a step of this turn, and return its result.

        `fn` returns a JSON value, or an awaitable of one; anything else ends the turn with `invalid_result`. A name
        may be used again: its uses are counted. The result is recorded, with what `fn` changed in the session's state:
        another attempt of the turn is given both, and doesn't call `fn`. If the worker dies while `fn` runs, one that
        is `repeatable` is called again; any other ends the turn with `step_uncertain`.
        """
        return await self.steps.run(name, fn, repeatable=repeatable)

    async def emit(self, event: Any) -> None:  # noqa: ANN401 - any JSON value
        """Publish a JSON value, as an event `custom`, to those who watch the run.

        Without `stream: true` in the request nobody does. It waits for nobody.
        """
        if self.events.watched:
            self.tell("custom", data=as_json(event, what="the event"))

    def tell(self, type_: str, **fields: Any) -> None:  # noqa: ANN401 - the event's own fields
        """Tell an event of this part of the turn to those who watch the run."""
        own = None if self.run_id == self.events.run_id else self.run_id
        self.events.tell(type_, member_run_id=own, **fields)

    def part(self, name: str, run: MemberRun) -> Turn:
        """Return this turn as a member or a step takes part in it: the same session and state, a run of its own.

        `name` is the part's within this one, the same in every attempt.
        """
        return replace(
            self.within(name),
            run_id=run.run_id,
            origin_id=run.origin_id,
            input=text_of_input(run.input),
            parts=run.input,
            messages=run.messages,
        )

    def within(self, name: str) -> Turn:
        """Return this turn as a part of it that is no run of its own sees it; its messages are its own."""
        return replace(self, messages=[], written=[], steps=self.steps.within(name))


@dataclass(frozen=True, slots=True)
class WrittenSummary:
    """A summary of a session's runs so far."""

    text: str
    runs: int
    """How many of the runs that were given it covers, from the first."""
    usage: Usage
    topics: tuple[str, ...] = ()
    """What it is about, where its writer says so."""


class Summarizer(Protocol):
    """Whatever writes the summary of a session."""

    async def summarize(self, previous: str | None, runs: Sequence[PastRun]) -> WrittenSummary:
        """Return a summary of what `previous` summarizes and of the runs after it, as many as go in at once.

        Raises SummaryRejected if the provider won't take so many of them.
        """


class Executor(Protocol):
    """Whatever can take a turn. Built once, at the start; it runs many turns at once and keeps nothing of them.

    One with a true `whole_history` has its turns given `Turn.whole_history`.
    """

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
    def journal(self) -> bool:
        """Whether the steps of its turns are recorded."""

    @property
    def summarizer(self) -> Summarizer | None:
        """What keeps the summary of its sessions up to date, if anything does."""

    async def run(self, turn: Turn) -> JsonValue:
        """Take the turn and return its answer. Raise TurnFailed, or anything else, if there is none."""
