"""What a model writes and which tools it calls, told while it happens, where the run is watched."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
)

from worker.executors.turn import Turn

DELEGATING: Final = frozenset({"delegate_task", "delegate_to_all"})
"""Of these tools' calls the members' own events tell."""

_FAILED: Final = frozenset({"failed", "retried"})
"""The outcomes of a call after which the model is told to try again, or that it failed."""

_watched: ContextVar[Turn | None] = ContextVar("the watched turn whose agent runs", default=None)


@contextmanager
def told_of(turn: Turn) -> Iterator[None]:
    """Have what agents do in the block be told, if the turn is watched."""
    token = _watched.set(turn if turn.events.watched else None)
    try:
        yield
    finally:
        _watched.reset(token)


def is_watched() -> bool:
    """Whether what the agent does that runs here is told."""
    return _watched.get() is not None


async def tell_all(_: RunContext[Any], events: AsyncIterable[Any]) -> None:
    """Tell each event of a model's answer: a handler of pydantic-ai's."""
    async for event in events:
        tell(event)


def tell(event: object) -> None:
    """Tell one event of pydantic-ai's."""
    turn = _watched.get()
    if turn is None:
        return
    match event:
        case PartStartEvent(index=0, part=part) if not isinstance(part, TextPart):
            turn.written.clear()
        case PartStartEvent(index=index, part=TextPart(content=text)):
            if index == 0:
                turn.written.clear()
            _tell_text(turn, text)
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            _tell_text(turn, text)
        case FunctionToolCallEvent(part=call, args_valid=False):
            tell_call(call)  # it ends before it is made
        case FunctionToolResultEvent(part=result) if result.tool_name not in DELEGATING:
            if result.outcome != "denied":  # that one was never made
                failed = result.outcome in _FAILED
                turn.tell("tool_call_finished", tool=result.tool_name, call_id=result.tool_call_id, failed=failed)
        case _:
            pass


def tell_call(call: ToolCallPart) -> None:
    """Tell that a tool is called: as it is made, not as it is asked for; it may have to be approved before."""
    turn = _watched.get()
    if turn is not None and call.tool_name not in DELEGATING:
        arguments = call.args_as_dict() if call.args else {}
        turn.tell("tool_call_started", tool=call.tool_name, call_id=call.tool_call_id, arguments=arguments)


def _tell_text(turn: Turn, text: str) -> None:
    if text:
        turn.written.append(text)
        turn.tell("content_delta", text=text)
