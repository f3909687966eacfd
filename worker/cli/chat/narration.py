"""A run's events, as they are told: the answer as it is written, and what members and tools do beside it."""

from __future__ import annotations

from typing import Final, assert_never

from schemas.events import (
    ContentDelta,
    Custom,
    MemberFinished,
    MemberStarted,
    RunEvent,
    RunFinished,
    RunJoined,
    RunStarted,
    StateChanged,
    ToolFinished,
    ToolStarted,
)
from schemas.replies import RunReply, RunStatus
from worker.cli.chat.rows import Rows
from worker.cli.chat.screens import Screen, Style
from worker.cli.terminal import cut, one_line
from worker.executors.turn import text_of

_NARROWEST_COLUMNS: Final = 20
_Mentioned = ToolStarted | ToolFinished | StateChanged | Custom | RunJoined
"""What is told in one row."""


class Narration:
    """Tells one run, over any number of attempts and connections; its end makes up for what got lost on the way."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._written = ""
        """What was shown of the answer of this attempt."""
        self._members: dict[str, _Member] = {}
        """By the member's run."""

    def tell(self, event: RunEvent) -> None:
        """Show an event."""
        member = self._members.get(event.member_run_id or "")
        match event:
            case RunStarted():
                self._start(event)
            case ContentDelta():
                self._write(event, member)
            case MemberStarted():
                self._begin_member(event)
            case MemberFinished():
                self._end_member(event, member)
            case ToolStarted() | ToolFinished() | StateChanged() | Custom() | RunJoined():
                self._mention(event, member)
            case RunFinished():
                pass  # see `finish`
            case unexpected:
                assert_never(unexpected)

    def finish(self, reply: RunReply) -> None:
        """Show what the reply says and was not told yet: the answer itself where not all of it came as events."""
        for member in self._members.values():
            self._flush(member)
        answer, written = text_of(reply.content).strip(), self._written.strip()
        if written and not written.endswith(answer) and reply.status is RunStatus.COMPLETED:
            self._aside("some of it was lost on the way; all of it:", 0)
            written = ""
        if answer and not written:
            # Structured output, or what was recorded before a crash, is written by no model here.
            self._screen.write(answer)
        self._screen.end()
        if (ended := how_it_ended(reply)) is not None:
            self._screen.aside(ended, style=Style.ALARMED)

    def _start(self, event: RunStarted) -> None:
        if event.attempt > 1:
            self._aside(f"goes on, attempt {event.attempt}", 1)
        # An answer that was broken off is written anew.
        self._written = ""
        self._members.clear()

    def _write(self, event: ContentDelta, member: _Member | None) -> None:
        if member is not None:
            self._tell_of(member, member.rows.add(event.text))
        elif event.member_run_id is None:
            self._written += event.text
            self._screen.write(event.text)

    def _begin_member(self, event: MemberStarted) -> None:
        parent = self._members.get(event.parent_run_id)
        depth = 1 if parent is None else parent.depth + 1
        name = one_line(event.member_id)
        columns = max(self._screen.columns - 2 * depth - len(name) - len(": "), _NARROWEST_COLUMNS)
        self._aside(f"{name} …", depth)
        if event.member_run_id is not None:
            self._members[event.member_run_id] = _Member(name, depth, Rows(columns))

    def _end_member(self, event: MemberFinished, member: _Member | None) -> None:
        self._flush(member)
        if event.status is not RunStatus.COMPLETED:
            self._aside(f"{one_line(event.member_id)}: {event.status.value}", 1 if member is None else member.depth)

    def _mention(self, event: _Mentioned, member: _Member | None) -> None:
        said = _said_of(event)
        if said is not None:
            self._flush(member)
            self._aside(said, 1 if member is None else member.depth + 1)

    def _flush(self, member: _Member | None) -> None:
        if member is not None:
            self._tell_of(member, member.rows.end())

    def _tell_of(self, member: _Member, rows: list[str]) -> None:
        """Show rows that a member has written, each with its name: members write side by side."""
        for row in rows:
            if row.strip():
                self._screen.aside(f"{member.name}: {row}", depth=member.depth)

    def _aside(self, text: str, depth: int) -> None:
        """Show in one row what happens."""
        self._screen.aside(cut(f"· {text}", self._screen.columns - 2 * depth), depth=depth)


class _Member:
    def __init__(self, name: str, depth: int, rows: Rows) -> None:
        self.name = name
        self.depth = depth
        self.rows = rows


def how_it_ended(reply: RunReply) -> str | None:
    """Return a sentence about a run that did not simply complete, with its code."""
    code = "" if reply.error is None else f" ({reply.error.code.value})"
    why = "" if reply.error is None else f": {one_line(reply.error.message).rstrip('.')}"
    match reply.status:
        case RunStatus.COMPLETED if reply.error is None:
            return None
        case RunStatus.COMPLETED:
            return f"It comes without its answer{why}{code}."
        case RunStatus.CANCELLED:
            return f"Cancelled{code}."
        case RunStatus.PAUSED:
            return "It is paused, and waits for a decision:"
        case RunStatus.REJECTED:
            return f"Refused{why}{code}."
        case RunStatus.ERROR:
            again = " It is worth asking again." if reply.error is not None and reply.error.retryable else ""
            return f"It failed{why}{code}.{again}"
        case unexpected:
            assert_never(unexpected)


def _said_of(event: _Mentioned) -> str | None:
    match event:
        case ToolStarted():
            return f"{one_line(event.tool)}({one_line(text_of(event.arguments))})"
        case ToolFinished():
            return f"{one_line(event.tool)} failed; the model is told" if event.failed else None
        case StateChanged():
            changed = [f"{one_line(key)} = {one_line(text_of(value))}" for key, value in event.changed.items()]
            removed = [f"without {one_line(key)}" for key in event.removed]
            return f"state: {', '.join(changed + removed)}"
        case Custom():
            return one_line(text_of(event.data))
        case RunJoined():
            return "is answered together with another one"
        case unexpected:
            assert_never(unexpected)
