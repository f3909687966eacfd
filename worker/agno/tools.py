"""The tools of a turn: each call of a user's tool is a step, made once, and calls that succeeded are counted.

Agno's own tools (delegation, memories, searches) are part of its run, and made again by a later attempt; what their
models answer within is recorded. So are tools that yield: what they have to say comes bit by bit.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from agno.exceptions import AgentRunException
from agno.models.message import Message
from agno.tools.function import FunctionExecutionResult, ToolResult
from agno.utils.timer import Timer
from pydantic import JsonValue
from pydantic_core import to_json

from worker.agno.answers import MEDIA, Unrecordable, as_recorded, media_as_json
from worker.agno.tasks import makes_task, name_task
from worker.executors.journal import Asked
from worker.executors.state_changes import StateChange, kept_change, watched
from worker.executors.turn import JsonObject, Turn

_OF_AGNO: Final = "agno."
_TOOLKITS: Final = ("agno.tools.", "agno.utils.mcp")
"""Agno's toolkits, and tools of MCP servers, are users' tools: they send mails, and change databases."""
_RUNS_MORE: Final = ("agno.tools.workflow", "agno.tools.studio_runner")
"""... but those that run agents of their own: their models' answers are recorded."""
_SAFE_TO_REPEAT: Final = ("readOnlyHint", "idempotentHint")

_DIGEST_CHARACTERS: Final = 16

Call = Any
"""Agno's FunctionCall."""
Outcome = tuple[Any, Any, Call, Any]
"""What Agno's `arun_function_call` returns: success or an exception, a timer, the call with its result, the result."""


@dataclass(frozen=True)
class TurnTools:
    """The tools of one turn."""

    turn: Turn
    _made_again: dict[int, tuple[JsonObject, dict[str, int]]] = field(default_factory=dict)
    """Of each run's state: the state, and when the value that a key was given again was recorded."""

    async def call(self, made: Callable[[Call], Awaitable[Outcome]], call: Call) -> Outcome:
        """Have Agno make a call, or return what it came to in an earlier attempt."""
        if self.turn.steps.journal.kept and _is_recorded(call.function):
            outcome = await self._recorded(made, call)
        else:
            outcome = await made(call)
            if makes_task(call.function):
                name_task(call, sha256(f"{self.turn.run_id} {call.call_id} {_digest(call).hex()}".encode()).digest())
        self.turn.usage.tool_calls += outcome[0] is True
        return outcome

    async def _recorded(self, made: Callable[[Call], Awaitable[Outcome]], call: Call) -> Outcome:
        outcomes: list[Outcome] = []
        run = _RunState(call)

        async def make() -> JsonValue:
            with kept_change() as change, watched(run):
                outcomes[:] = [await made(call)]
            return _told(outcomes[0], change, self.turn.steps.journal.last_seq)

        function, digest = call.function, _digest(call)
        # Ids of calls are unique in one conversation, and there can be more of them side by side.
        which = " ".join(filter(None, (call.call_id, digest.hex()[:_DIGEST_CHARACTERS])))
        name = f"{_owner(function)}[{which}]/tool:{function.name}"
        asked = Asked("", digest, repeatable=_may_be_repeated(function), failure_kept=False)
        try:
            recorded = await self.turn.steps.call(name, asked, make)
        except Unrecordable:
            return outcomes[0]
        if outcomes:
            return outcomes[0]
        if "yields" in recorded:
            return await made(call)
        if "change" in recorded:
            self._change_again(run.state, StateChange.of(recorded["change"]), recorded["seq"])
        return _outcome_of(recorded, call, run)

    def _change_again(self, state: JsonObject, change: StateChange, seq: int) -> None:
        # Calls side by side are given again in the order in which they were made, and changed it in that of their ends.
        _, made = self._made_again.setdefault(id(state), (state, {}))
        newer = {key for key in (*change.values, *change.removed) if made.get(key, -1) < seq}
        made.update(dict.fromkeys(newer, seq))
        values = {key: value for key, value in change.values.items() if key in newer}
        StateChange(values, [key for key in change.removed if key in newer]).make(state)


class _RunState:
    """The state of the run that a call is of: a member has one of its own, which is merged into its leader's."""

    def __init__(self, call: Call) -> None:
        context = getattr(call.function, "_run_context", None)
        state = getattr(context, "session_state", None)
        self.state: JsonObject = state if isinstance(state, dict) else {}


def _is_recorded(function: Any) -> bool:
    entrypoint = function.entrypoint
    if entrypoint is None or inspect.isasyncgenfunction(entrypoint) or inspect.isgeneratorfunction(entrypoint):
        return False
    module = getattr(inspect.unwrap(entrypoint), "__module__", None) or ""
    if module.startswith(_RUNS_MORE):
        return False
    return module.startswith(_TOOLKITS) or not module.startswith(_OF_AGNO)


def _may_be_repeated(function: Any) -> bool:
    hints = getattr(function, "annotations", None) or {}
    return getattr(function, "has_side_effects", None) is False or any(hints.get(hint) for hint in _SAFE_TO_REPEAT)


def _owner(function: Any) -> str:
    owner = getattr(function, "_agent", None) or getattr(function, "_team", None)
    return str(getattr(owner, "id", None) or "agno")


def _digest(call: Call) -> bytes:
    asked = to_json([call.function.name, call.arguments], fallback=str, inf_nan_mode="constants")
    return sha256(asked).digest()


def _told(outcome: Outcome, change: StateChange, seq: int) -> JsonValue:
    success, _timer, call, execution = outcome
    told: JsonObject = {"success": success is True, "error": call.error}
    if isinstance(success, AgentRunException):
        told["raised"] = _told_exception(success)
    elif isinstance(execution.result, ToolResult):
        told["media"] = execution.result.model_dump(exclude_none=True, exclude={"images", "videos", "audios", "files"})
        told["media"] |= _media(execution.result)
    elif isinstance(call.result, Iterator | AsyncIterator):
        return {"yields": True}  # whatever Agno iterates over
    elif call.result is not None:
        told["text"] = str(call.result)  # which is all that Agno makes of it
    if change:
        told |= {"change": change.as_json(), "seq": seq}
    return as_recorded(told)


def _outcome_of(recorded: Any, call: Call, run: _RunState) -> Outcome:
    timer = Timer()
    timer.start()
    timer.stop()
    success: Any = recorded["success"]
    call.error = recorded["error"]
    if "raised" in recorded:
        success = _exception_of(recorded["raised"])
    elif "media" in recorded:
        call.result = ToolResult(**_with_media(recorded["media"]))
    else:
        call.result = recorded.get("text")
    execution = FunctionExecutionResult(
        status="success" if success is True else "failure",
        result=call.result,
        error=call.error,
        updated_session_state=run.state if "change" in recorded else None,
    )
    return success, timer, call, execution


def _media(result: Any) -> JsonObject:
    return {name: media_as_json(media) for name in MEDIA if (media := getattr(result, name))}


def _with_media(recorded: JsonObject) -> JsonObject:
    return recorded | {name: made(recorded[name]) for name, made in MEDIA.items() if name in recorded}


def _told_exception(error: Any) -> JsonObject:
    """Return one of the exceptions by which a tool tells Agno what to do next."""
    return {
        "text": str(error),
        "user_message": _told_message(error.user_message),
        "agent_message": _told_message(error.agent_message),
        "messages": [_told_message(message) for message in error.messages or ()],
        "stop_execution": error.stop_execution,
    }


def _exception_of(recorded: JsonObject) -> AgentRunException:
    return AgentRunException(
        recorded["text"],
        user_message=_message_of(recorded["user_message"]),
        agent_message=_message_of(recorded["agent_message"]),
        messages=[_message_of(message) for message in recorded["messages"]],
        stop_execution=recorded["stop_execution"],
    )


def _told_message(message: Any) -> Any:
    return {"message": message.to_dict()} if isinstance(message, Message) else message


def _message_of(recorded: Any) -> Any:
    if isinstance(recorded, dict) and recorded.keys() == {"message"}:
        return Message.from_dict(dict(recorded["message"]))
    return recorded
