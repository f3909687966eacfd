"""A wrong argument of what takes turns is a mistake at the start, told where it is; not one in a turn."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.concurrency import ConcurrencyLimiter
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import UsageLimits

from tests.unit.models import member
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.team.arguments import KINDS
from worker.team.single_agent import SingleAgent
from worker.team.summary import SessionSummary
from worker.team.team import Team
from worker.team.workflow import Step, Workflow


class _Deps(BaseModel):
    """Dependencies of some other program."""


class _Stateful(Protocol):
    """What of a turn a user's agent needs."""

    session_state: dict[str, Any]


def delegate_task(task: str) -> str:
    return task


def update_session_state(changes: str) -> str:
    return changes


def _of_two(turn: Turn, more: str) -> str:
    return turn.input + more


def _of_one_or_two(turn: Turn, more: str = "") -> str:
    return turn.input + more


def _of_named(*, turn: Turn) -> str:
    return turn.input


async def _step(turn: Turn) -> str:
    return turn.input


async def _stepless() -> str:
    return ""


_MAKERS: dict[str, Callable[..., object]] = {
    "team 't'": partial(Team, "t", TestModel()),
    "agent 'a'": partial(SingleAgent, member("a")),
    "workflow 'w'": partial(Workflow, "w", [_step]),
    "executor 'e'": partial(executor, "e"),
}
_WRONG: list[tuple[str, object, str]] = [
    *[("history_runs", wrong, "None or a whole number, 0 or more") for wrong in (1.5, "3", True, -1)],
    *[("model_retries", wrong, "a whole number, 0 or more") for wrong in (1.5, "3", True, None, -1)],
    *[("timeout", wrong, "a number of seconds above 0") for wrong in (math.nan, math.inf, "5", 0, -1, True)],
    *[("tool_timeout", wrong, "a number of seconds above 0") for wrong in (math.nan, math.inf, "5", 0, -1, True)],
    *[("usage_limits", wrong, "None or pydantic-ai's UsageLimits") for wrong in ({"request_limit": 1}, 5)],
    ("usage_limits", {}, "None or pydantic-ai's UsageLimits"),
    ("usage_limits", UsageLimits, "not the class UsageLimits"),
    *[("session_summary", wrong, "True, False or a SessionSummary") for wrong in ("openai:gpt", None, 1)],
    ("session_summary", SessionSummary(instructions=["Be brief."]), "instructions is text, not list"),  # type: ignore[arg-type]
    ("session_summary", SessionSummary(model="nowhere:gpt"), "model: Unknown model"),
    ("session_summary", SessionSummary(model_settings="hot"), "model_settings is None or"),  # type: ignore[arg-type]
    *[("session_state", wrong, "a dict of JSON values") for wrong in (["a"], "a", 5)],
    ("session_state", {"a": object()}, "session_state['a'] is a JSON value, not object"),
    ("session_state", {"a": math.nan}, "session_state['a'] is a JSON value, not nan"),
    ("session_state", dict.fromkeys("ab", "x" * 2**21), "session_state is larger than 4194304 bytes"),
    ("session_state", dict.fromkeys("ab", [0] * 60_000), "session_state has more than 100,000 values"),
    *[("name", wrong, "None or text") for wrong in (5, b"n", ["n"])],
    ("description", 5, "None or text, not 5"),
    *[("mode", wrong, "'coordinate' or 'route' or 'broadcast'") for wrong in (None, ["route"], "Route")],
    ("kind", "crew", "'team' or 'agent' or 'workflow', not 'crew'"),
    ("end_strategy", "soon", "'early' or 'graceful' or 'exhaustive'"),
    ("members", member("a"), "a list of Agents and Teams, not Agent"),
    ("members", None, "not None"),
    *[("add_history_to_members", wrong, "None or True or False") for wrong in ("yes", 1)],
    *[("add_history_to_steps", wrong, "True or False") for wrong in ("yes", 1, None)],
    *[("tolerate_member_failures", wrong, "True or False") for wrong in ("no", 0, None)],
    *[("add_session_state_to_context", wrong, "True or False") for wrong in ("no", 0, None)],
    *[("enable_agentic_state", wrong, "True or False") for wrong in ("no", 0, None)],
    ("instructions", 5, "or a list of them, not 5"),
    ("instructions", _of_two, "the Turn or a RunContext[Turn], or a list of them, not the function _of_two"),
    ("instructions", _of_named, "not the function _of_named"),
    ("instructions", ["text", 5], "instructions[1] is text, or a function"),
    ("instructions", ["text", _of_two], "instructions[1] is"),
    ("tools", delegate_task, "a list of functions and pydantic-ai Tools, not the function delegate_task"),
    ("tools", [5], "tools[0] is a function or a pydantic-ai Tool, not 5"),
    ("tools", [partial(delegate_task, "x")], "tools[0] is a function or a pydantic-ai Tool, not partial"),
    ("tools", [delegate_task, delegate_task], "delegate_task"),
    ("toolsets", FunctionToolset(), "a list of pydantic-ai toolsets, not FunctionToolset"),
    ("toolsets", [5], "toolsets[0] is a pydantic-ai toolset, or a function that returns one, not 5"),
    ("capabilities", [5], "capabilities[0] is a pydantic-ai capability, or a function that returns one, not 5"),
    ("output_type", 5, "5"),
    ("output_type", [], "output type"),
    ("model_settings", "hot", "pydantic-ai's ModelSettings, a dict, not 'hot'"),
    *[("retries", wrong, "a whole number, 0 or more, or pydantic-ai's AgentRetries") for wrong in (-1, True, 1.5, "3")],
    ("retries", {"tool": 1}, "AgentRetries"),
    ("retries", {"tools": -1}, "retries['tools'] is a whole number, 0 or more, not -1"),
    *[("model_concurrency", wrong, "a whole number above 0") for wrong in (0, -1, True, "3")],
    *[("model", wrong, "a model's name, provider:model, or a pydantic-ai Model") for wrong in (None, 5, TestModel)],
    ("model", "no-such-model", "model: Unknown model"),
    ("model", "openai:gpt-5", "model: Set the `OPENAI_API_KEY`"),
    ("model", "anthropic:claude", "model: Please install"),
    ("fallback_models", "openai:gpt-5", "fallback_models is a list of models, not 'openai:gpt-5'"),
    ("fallback_models", [None], "fallback_models[0] is a model's name"),
    ("fallback_models", [TestModel(), "nowhere:gpt"], "fallback_models[1]: Unknown model"),
    ("steps", _step, "a list of Steps, or of what steps run, not the function _step"),
    ("steps", [Step(5, _step)], "step 1: name is text, not 5"),  # type: ignore[arg-type]
    ("steps", [_stepless], "an async function of one argument, the Turn"),
]


@pytest.mark.parametrize(
    ("where", "parameter", "wrong", "reason"),
    [
        pytest.param(where, *case, id=f"{where}: {case[0]}: {case[2][:50]}")
        for where, make in _MAKERS.items()
        for case in _WRONG
        if case[0] in inspect.signature(make.func).parameters  # type: ignore[attr-defined]
    ],
)
def test_a_wrong_argument_is_a_value_error_that_says_where_which_what_it_may_be_and_what_was_given(
    where: str, parameter: str, wrong: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    make: Any = _MAKERS[where]
    with pytest.raises(ValueError, match=f"^{where}: ") as failed:
        make.func(**_arguments(make) | {parameter: wrong})
    message = str(failed.value)
    assert reason in message
    assert "\n" not in message
    assert parameter in message or parameter in {"output_type", "tools", "steps"}


def _arguments(make: partial[object]) -> dict[str, Any]:
    return inspect.signature(make.func).bind(*make.args).arguments


@pytest.mark.parametrize(
    "right",
    [
        {"history_runs": None, "timeout": 0.5, "tool_timeout": 3, "model_retries": 0},
        {"retries": {"tools": 2}, "model_concurrency": ConcurrencyLimiter(2)},
        {"members": (member("a"),), "fallback_models": (TestModel(),)},
        {"instructions": ["text", None, lambda: "nothing", _of_one_or_two]},
        {"tools": [delegate_task, Tool(update_session_state)]},
        {"toolsets": [FunctionToolset(), lambda _context: FunctionToolset()], "capabilities": []},
        {"session_state": {"a": [1, {"b": None}]}, "session_summary": SessionSummary(instructions="Be brief.")},
        {"add_history_to_members": None, "description": "Answers.", "model_settings": {"temperature": 0}},
    ],
    ids=" ".join,
)
def test_what_can_be_is_taken(right: dict[str, Any]) -> None:
    assert Team("t", TestModel(), **right).target.id == "t"


@pytest.mark.parametrize("made", [Team, SingleAgent, Workflow])
def test_every_argument_is_checked(made: type) -> None:
    by_what_they_are_made_into = {"id", "agent", "session_summary", "output_type"}
    assert set(inspect.signature(made).parameters) - by_what_they_are_made_into <= KINDS.keys()


_OUR_NAMES = [
    partial(Team, "t", TestModel(), enable_agentic_state=True, tools=[update_session_state]),
    partial(Team, "t", TestModel(), enable_agentic_state=True, tools=[Tool(len, name="update_session_state")]),
    partial(Team, "t", TestModel(), enable_agentic_state=True, toolsets=[FunctionToolset([update_session_state])]),
    partial(Team, "t", TestModel(), members=[member("a")], tools=[delegate_task]),
    partial(Team, "t", TestModel(), members=[member("a")], tools=[Tool(len, name="delegate_to_all")]),
    partial(Team, "t", TestModel(), members=[member("a")], toolsets=[FunctionToolset([delegate_task])]),
    partial(SingleAgent, Agent(TestModel(), name="a", tools=[update_session_state]), enable_agentic_state=True),
]


@pytest.mark.parametrize("make", _OUR_NAMES, ids=range(len(_OUR_NAMES)))
def test_a_tool_with_the_name_of_one_of_ours_is_a_value_error(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^(team|agent) .*: tools has '(update_session_state|delegate_t)"):
        make()


def test_a_tool_may_have_the_name_of_one_of_ours_that_the_team_has_not() -> None:
    Team("t", TestModel(), tools=[update_session_state, delegate_task])


_AGENT_WITH_TWO = Agent(TestModel(), name="a", tools=[delegate_task], toolsets=[FunctionToolset([delegate_task])])
_TWICE: list[Callable[[], object]] = [
    partial(Team, "t", TestModel(), tools=[delegate_task, Tool(delegate_task)]),
    partial(Team, "t", TestModel(), tools=[delegate_task], toolsets=[FunctionToolset([delegate_task])]),
    partial(Team, "t", TestModel(), toolsets=[FunctionToolset([delegate_task]), FunctionToolset([delegate_task])]),
    partial(Team, "t", TestModel(), members=[_AGENT_WITH_TWO]),
    partial(SingleAgent, _AGENT_WITH_TWO),
]


@pytest.mark.parametrize("make", _TWICE, ids=range(len(_TWICE)))
def test_two_tools_of_one_name_are_a_value_error(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^(team|agent) '[ta]'.*: two tools have the name 'delegate_task'"):
        make()


def test_two_tools_of_one_name_may_be_there_in_turns() -> None:
    """Which of them is there is decided before each request, by their `prepare`."""
    sometimes = Tool(delegate_task, prepare=_never)
    Team("t", TestModel(), toolsets=[FunctionToolset([sometimes]), FunctionToolset([delegate_task])])


async def _never(_context: RunContext[Turn], _tool: ToolDefinition) -> None:
    return None


_PLACES: list[tuple[str, Callable[[Agent[Any, str]], object]]] = [
    ("team 't': member 1", lambda given: Team("t", TestModel(), members=[given])),
    ("workflow 'w': step 1", lambda given: Workflow("w", [given])),
    ("agent 'helper'", SingleAgent),
]


@pytest.mark.parametrize(("where", "make"), _PLACES)
@pytest.mark.parametrize("deps_type", [_Deps, str, str | int])
def test_an_agent_with_dependencies_of_its_own_is_a_value_error(
    where: str, make: Callable[[Agent[Any, str]], object], deps_type: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{where}: deps_type is Turn, or none, since agents are run with the Turn"):
        make(Agent(TestModel(), name="helper", deps_type=deps_type))


@pytest.mark.parametrize("deps_type", [Turn, object, None, type(None), Any, Turn | None, _Stateful])
def test_an_agent_that_the_turn_is_dependency_enough_for_can_be_a_member(deps_type: Any) -> None:
    Team("t", TestModel(), members=[Agent(TestModel(), name="helper", deps_type=deps_type)])


@pytest.mark.parametrize(("where", "make"), _PLACES)
def test_an_agent_whose_model_can_not_be_made_is_a_value_error(
    where: str, make: Callable[[Agent[Any, str]], object]
) -> None:
    with pytest.raises(ValueError, match=f"^{where}: model: Unknown model"):
        make(Agent("nowhere:gpt", name="helper", defer_model_check=True))


def test_a_key_that_stands_where_the_model_should_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2hunter2")
    with pytest.raises(ValueError, match="Unknown model") as failed:
        Team("t", "sk-hunter2hunter2")
    assert "hunter2" not in str(failed.value)


def test_an_instruction_of_pydantic_ai_s_context_is_taken() -> None:
    def who(context: RunContext[Turn]) -> str:
        return str(context.deps.user_id)

    Team("t", TestModel(), instructions=who)
