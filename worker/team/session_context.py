"""What of its session a model is told, and how it can change the state: opt-in, but for the summary."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_origin, get_type_hints

from pydantic import JsonValue
from pydantic_ai import RunContext, Tool

from worker.executors.json_values import as_json, json_text
from worker.executors.turn import Turn

InstructionFunction = Callable[..., Any]
"""A function, async or not, of the Turn, of pydantic-ai's RunContext[Turn], or of nothing; it returns text or None."""
Instructions = str | InstructionFunction | Sequence[str | InstructionFunction] | None
"""Text, or a function of the turn that returns text or nothing, or several of them."""

TurnInstruction = Callable[[RunContext[Turn]], Awaitable[str | None]]

_SUMMARY: Final = "What was said in this conversation before, in summary:"
_REPEATABLE: Final = {"teamturn": {"repeatable": True}}
_STATE: Final = "The state of this session, as JSON:"


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What of the session the model that answers is told."""

    state_shown: bool = False
    state_tool: bool = False

    def instructions(self) -> list[TurnInstruction]:
        """Return what makes the instructions; each is asked before every request, so that the state is current."""
        return [_summary, _state] if self.state_shown else [_summary]

    def tools(self) -> list[Tool[Turn]]:
        """Return the tools by which the model changes the session."""
        return [Tool(update_session_state, metadata=dict(_REPEATABLE))] if self.state_tool else []


async def _summary(context: RunContext[Turn]) -> str | None:
    summary = context.deps.summary
    return f"{_SUMMARY}\n{summary}" if summary else None


async def _state(context: RunContext[Turn]) -> str | None:
    return f"{_STATE}\n{json_text(as_json(context.deps.session_state, what='the session state'))}"


async def update_session_state(context: RunContext[Turn], changes: dict[str, Any], remove: list[str] = []) -> str:  # noqa: B006 - pydantic-ai copies it
    """Change the state of this session. What you don't name stays as it is.

    Args:
        context: The turn.
        changes: The keys to set, with their new values.
        remove: The keys to remove.

    """
    cleaned = as_json(changes, what="the change of the session state")
    assert isinstance(cleaned, dict)  # noqa: S101 - for the type checker: an object stays one
    state = context.deps.session_state
    state.update(cleaned)
    for key in remove:
        state.pop(key, None)
    return f"The state now has the keys {', '.join(map(str, state)) or 'none'}."


def as_instructions(given: Instructions) -> list[str | TurnInstruction]:
    """Return instructions as pydantic-ai takes them: functions of the turn become functions of its context."""
    several = [given] if given is None or isinstance(given, str) or callable(given) else list(given)
    return [one if isinstance(one, str) else _of_the_turn(one) for one in several if one]


def _of_the_turn(function: InstructionFunction) -> TurnInstruction:
    """Return the function as pydantic-ai calls it: with its own context, which has the turn."""
    parameters = list(inspect.signature(function).parameters)
    takes_context = bool(parameters) and _takes_context(function, parameters[0])

    async def instruction(context: RunContext[Turn]) -> str | None:
        given = [context if takes_context else context.deps] if parameters else []
        text = function(*given)
        if inspect.isawaitable(text):
            text = await text
        return None if text is None else str(text)

    return instruction


def _takes_context(function: InstructionFunction, parameter: str) -> bool:
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return False
    hint = hints.get(parameter)
    return hint is RunContext or get_origin(hint) is RunContext


def begin_state(turn: Turn, defaults: Mapping[str, JsonValue]) -> None:
    """Give the state the keys that a new session begins with; what it has already stays."""
    for key, value in defaults.items():
        turn.session_state.setdefault(key, as_json(value, what="the session state"))
