"""The arguments of Team, SingleAgent and Workflow: a name means the same in all three."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import NoneType
from typing import Any, Final, TypeVar, get_args

from pydantic_ai import Tool
from pydantic_ai.agent import EndStrategy
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.concurrency import AbstractConcurrencyLimiter, ConcurrencyLimit
from pydantic_ai.models import Model, infer_model
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset
from pydantic_ai.usage import UsageLimits

from schemas.ids import SessionType, Target
from worker.errors import InvalidResult
from worker.executors.arguments import (
    COUNT,
    FLAG,
    HISTORY_RUNS,
    LONG_SECONDS,
    SECONDS,
    TEXT,
    Kind,
    check,
    check_one,
    is_list,
    list_of,
    of_type,
    one_of,
    optional,
    shown,
    takes,
    target_of,
)
from worker.executors.json_values import MAX_STATE_BYTES, as_json, json_text
from worker.executors.pauses import WhilePaused
from worker.executors.turn import Turn
from worker.operations.logging import Redaction, secrets_in
from worker.team.agent_run import AnyAgent
from worker.team.modes import Mode

_T = TypeVar("_T")


def _is_instruction(given: object) -> bool:
    return given is None or isinstance(given, str) or (callable(given) and _takes_the_turn_or_nothing(given))


def _takes_the_turn_or_nothing(function: Any) -> bool:  # noqa: ANN401 - any callable
    # It is called with the turn unless it has no parameters at all.
    return takes(function, None) or (takes(function) and not inspect.signature(function).parameters)


def _is_json(given: object) -> bool:
    try:
        as_json(given, what="")
    except InvalidResult:
        return False
    return True


def _is_concurrency(given: object) -> bool:
    whole = COUNT.fits(given) and given != 0
    return whole or isinstance(given, ConcurrencyLimit | AbstractConcurrencyLimiter)


def _is_retries(given: object) -> bool:
    return COUNT.fits(given) or (isinstance(given, dict) and given.keys() <= {"tools", "output"})


_INSTRUCTION: Final = Kind("text, or a function of one argument, the Turn or a RunContext[Turn]", _is_instruction)
_TOOL: Final = Kind(
    "a function or a pydantic-ai Tool",
    lambda given: isinstance(given, Tool) or (callable(given) and hasattr(given, "__name__")),
)
_TOOLSET: Final = Kind(
    "a pydantic-ai toolset, or a function that returns one",
    lambda given: isinstance(given, AbstractToolset) or callable(given),
)
_CAPABILITY: Final = Kind(
    "a pydantic-ai capability, or a function that returns one",
    lambda given: isinstance(given, AbstractCapability) or (callable(given) and not isinstance(given, type)),
)
_MODEL: Final = of_type("a model's name, provider:model, or a pydantic-ai Model", str, Model)
_SETTINGS: Final = optional(of_type("pydantic-ai's ModelSettings, a dict", dict))

KINDS: Final[Mapping[str, Kind]] = {
    "name": optional(TEXT),
    "description": optional(TEXT),
    "model": _MODEL,
    "members": list_of("Agents and Teams"),
    "steps": list_of("Steps, or of what steps run"),
    "mode": one_of(*get_args(Mode)),
    "instructions": Kind(
        f"{_INSTRUCTION.may_be}, or a list of them",
        lambda given: is_list(given) or _is_instruction(given),
        _INSTRUCTION,
    ),
    "tools": list_of("functions and pydantic-ai Tools", _TOOL),
    "toolsets": list_of("pydantic-ai toolsets", _TOOLSET),
    "model_settings": _SETTINGS,
    "usage_limits": optional(of_type("pydantic-ai's UsageLimits", UsageLimits)),
    "retries": optional(Kind(f"{COUNT.may_be}, or pydantic-ai's AgentRetries", _is_retries, COUNT)),
    "model_retries": COUNT,
    "fallback_models": list_of("models", _MODEL),
    "model_concurrency": optional(
        Kind("a whole number above 0, or pydantic-ai's ConcurrencyLimit or ConcurrencyLimiter", _is_concurrency)
    ),
    "timeout": optional(SECONDS),
    "tool_timeout": optional(SECONDS),
    "end_strategy": one_of(*get_args(EndStrategy)),
    "capabilities": list_of("pydantic-ai capabilities", _CAPABILITY),
    "history_runs": HISTORY_RUNS,
    "add_history_to_members": optional(FLAG),
    "add_history_to_steps": FLAG,
    "tolerate_member_failures": FLAG,
    "session_state": optional(
        Kind("a dict of JSON values", lambda given: isinstance(given, Mapping), Kind("a JSON value", _is_json))
    ),
    "add_session_state_to_context": FLAG,
    "enable_agentic_state": FLAG,
    "journal": FLAG,
    "while_paused": one_of(*get_args(WhilePaused)),
    "pause_timeout": LONG_SECONDS,
}
"""By the parameter's name. `id`, `agent` and `session_summary` are checked by what they are made into."""


def checked_target(kind: SessionType, target_id: str, given: Mapping[str, object]) -> Target:
    """Return the target, once all that its constructor was given is looked at. Raises ValueError for what can't be.

    The message begins with the target, as in "team 'x': history_runs is …".
    """
    target = target_of(kind, target_id, f"{kind.value} id {target_id!r}")
    where = f"{kind.value} {target_id!r}"
    check(where, KINDS, given)
    _check_size(where, given.get("session_state"))
    return target


def _check_size(where: str, state: Any) -> None:  # noqa: ANN401 - None or a dict of JSON values
    # Else each turn would end as invalid_result.
    try:
        size = len(json_text(as_json(dict(state or {}), what="session_state")))
    except InvalidResult as error:
        raise ValueError(f"{where}: {error}") from None
    if size > MAX_STATE_BYTES:
        raise ValueError(f"{where}: session_state is larger than {MAX_STATE_BYTES} bytes")


def model_of(where: str, parameter: str, given: Model | str) -> Model:
    """Return a model. Raises ValueError, beginning with `where` and the parameter, for one that can't be made."""
    check_one(where, parameter, _MODEL, given)
    return made(f"{where}: {parameter}", partial(infer_model, given))


def check_agent(where: str, agent: AnyAgent) -> None:
    """Check that an agent can be run with the Turn, by a model that there is, with its tools told apart.

    Raises ValueError, as above.
    """
    if not _can_be_the_turn(agent.deps_type):
        raise ValueError(
            f"{where}: deps_type is Turn, or none, since agents are run with the Turn as their deps, "
            f"not {shown(agent.deps_type)}"
        )
    # With `defer_model_check` a name is kept until the first run; a worker finds out when it starts.
    if isinstance(agent.model, str):
        model_of(where, "model", agent.model)
    check_tool_names(where, (), (), agent.toolsets)


def _can_be_the_turn(deps_type: object) -> bool:
    if deps_type in (None, NoneType, Any):
        return True
    if isinstance(deps_type, type):
        return deps_type in Turn.__mro__ or getattr(deps_type, "_is_protocol", False)
    return Turn in get_args(deps_type)


def check_tool_names(where: str, ours: Iterable[Tool[Turn]], tools: Iterable[Any], toolsets: Iterable[Any]) -> None:
    """Check that no tool of the user's has the name of one of ours or of another. Raises ValueError, as above.

    A toolset that tells its tools in a run only, such as a server's, can't be looked into.
    """
    of_toolsets = [
        tool for toolset in toolsets if isinstance(toolset, FunctionToolset) for tool in toolset.tools.values()
    ]
    theirs = [*tools, *of_toolsets]
    names = set(map(_tool_name, theirs))
    for tool in ours:
        if tool.name in names:
            raise ValueError(f"{where}: tools has {tool.name!r}, the name of a tool that is added here; rename yours")
    # One with `prepare` may be left out whenever the other is there.
    always_there = Counter(_tool_name(tool) for tool in theirs if getattr(tool, "prepare", None) is None)
    for name, times in always_there.items():
        if times > 1:
            raise ValueError(f"{where}: two tools have the name {name!r}; rename one")


def _tool_name(tool: Any) -> str:  # noqa: ANN401 - a Tool or a function
    name: str = tool.name if isinstance(tool, Tool) else tool.__name__
    return name


def made(where: str, make: Callable[[], _T]) -> _T:
    """Return what is made. Raises ValueError, beginning with `where`, whatever is raised by what makes it."""
    try:
        return make()
    # pydantic-ai and providers' clients raise errors of many kinds for what they are made of.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # It is somebody else's text.
        raise ValueError(f"{where}: {Redaction(secrets_in(os.environ))(lines[0])}") from error
