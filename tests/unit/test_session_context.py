"""What of its session a model is told, and how it and its tools change the state: nothing that was written is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.toolsets import AbstractToolset, DynamicToolset, FunctionToolset
from pydantic_ai.toolsets.abstract import ToolsetTool
from typing_extensions import override

from tests.unit.examples import a_request, a_session, a_turn, context_of
from tests.unit.models import Recorded, member, responses, responses_so_far, says, tasks, text
from worker.errors import InvalidResult, ToolFailed
from worker.executors.attempt import new_turn
from worker.executors.turn import Turn
from worker.team.team import Team

_PARALLEL = 8


def calls(*tools: str, **arguments: Any) -> ModelResponse:
    """A response that calls these tools at once."""
    return ModelResponse(parts=[ToolCallPart(name, arguments) for name in tools])


def told(recorded: Recorded) -> list[str]:
    """The instructions of each request to a model."""
    return [info.instructions or "" for info in recorded.infos]


def returned(messages: list[ModelMessage]) -> list[str]:
    """What tools returned to a model."""
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return [str(part.content) for one in requests for part in one.parts if isinstance(part, ToolReturnPart)]


# --- instructions


def of_the_turn(turn: Turn) -> str:
    return f"You talk to {turn.user_id}."


async def of_the_turn_later(turn: Turn) -> str:
    await asyncio.sleep(0)
    return f"You talk to {turn.user_id}."


def of_the_context(context: RunContext[Turn]) -> str:
    return f"You talk to {context.deps.user_id}."


async def of_the_context_later(context: RunContext[Turn]) -> str:
    await asyncio.sleep(0)
    return f"You talk to {context.deps.user_id}."


def of_a_bare_context(context: RunContext) -> str:
    turn: Any = context.deps
    return f"You talk to {turn.user_id}."


def of_anything(it) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001 - as people write it
    return f"You talk to {it.user_id}."


def of_nothing() -> str:
    return "You talk to u1."


class Rules:
    def of_the_context(self, context: RunContext[Turn]) -> str:
        return f"You talk to {context.deps.user_id}."

    def __call__(self, turn: Turn) -> str:
        return f"You talk to {turn.user_id}."


@pytest.mark.parametrize(
    "instructions",
    [
        "You talk to u1.",
        of_the_turn,
        of_the_turn_later,
        of_the_context,
        of_the_context_later,
        of_a_bare_context,
        of_anything,
        of_nothing,
        Rules().of_the_context,
        Rules(),
        lambda turn: f"You talk to {turn.user_id}.",
        lambda: "You talk to u1.",
    ],
)
async def test_instructions_are_text_or_a_function_of_the_turn_or_of_its_context(instructions: Any) -> None:
    leader = responses(text("x"))
    await Team("t", leader.model, instructions=instructions).run(a_turn(user_id="u1"))
    assert told(leader) == ["You talk to u1."]


async def test_several_instructions_are_all_given_and_empty_ones_left_out() -> None:
    leader = responses(text("x"))
    several: list[Any] = ["Be brief.", of_the_turn, "", lambda: None, lambda: "", of_nothing, "Be kind."]
    await Team("t", leader.model, instructions=several).run(a_turn(user_id="u2"))
    (given,) = told(leader)
    assert given.split("\n\n") == ["Be brief.", "Be kind.", "You talk to u2.", "You talk to u1."]


async def test_a_function_is_asked_before_each_request() -> None:
    leader = responses(calls("update_session_state", changes={"lang": "de"}), text("x"))

    def language(turn: Turn) -> str:
        return f"Answer in {turn.session_state['lang']}."

    made = Team("t", leader.model, instructions=language, enable_agentic_state=True)
    await made.run(a_turn(session_state={"lang": "en"}))
    assert told(leader) == ["Answer in en.", "Answer in de."]


# --- the state in the context


async def test_the_state_is_shown_where_asked_and_is_current_at_each_request() -> None:
    leader = responses(calls("update_session_state", changes={"cart": ["tea"]}), text("x"))
    made = Team("t", leader.model, add_session_state_to_context=True, enable_agentic_state=True)
    await made.run(a_turn(session_state={"cart": []}))
    assert ['{"cart":[]}' in one for one in told(leader)] == [True, False]
    assert ['{"cart":["tea"]}' in one for one in told(leader)] == [False, True]


async def test_what_a_member_changed_is_shown_to_the_leader_after_it() -> None:
    async def book(context: RunContext[Turn]) -> str:
        context.deps.session_state["booked"] = True
        return "booked"

    booker = Agent(responses(calls("book"), text("x")).model, name="booker", deps_type=Turn, tools=[Tool(book)])
    leader = responses(tasks(("booker", "book it")), text("done"))
    await Team("t", leader.model, members=[booker], add_session_state_to_context=True).run(a_turn())
    assert ['{"booked":true}' in one for one in told(leader)] == [False, True]


async def test_neither_the_state_nor_its_tool_is_there_unasked_nor_given_to_members() -> None:
    leader, finder = responses(tasks(("finder", "x")), text("done")), responses(text("found"))
    made = Team("t", leader.model, members=[member("finder", finder.model)])
    await made.run(a_turn(session_state={"secret": 1}))
    assert "secret" not in "".join(told(leader))
    assert [tool.name for tool in leader.infos[0].function_tools] == ["delegate_task", "delegate_to_all"]
    asked = responses(tasks(("finder", "x")), text("done"))
    members = [member("finder", finder.model)]
    made = Team("t", asked.model, members=members, add_session_state_to_context=True, enable_agentic_state=True)
    await made.run(a_turn(session_state={"secret": 1}))
    assert "secret" in told(asked)[0]
    assert [(info.instructions, info.function_tools) for info in finder.infos] == [(None, [])] * 2


# --- update_session_state


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"changes": {"a": 2}}, {"a": 2, "b": {"x": 1}}),
        ({"changes": {"b": {"y": 2}}}, {"a": 1, "b": {"y": 2}}),
        ({"changes": {"c": None}}, {"a": 1, "b": {"x": 1}, "c": None}),
        ({"changes": {}, "remove": ["b"]}, {"a": 1}),
        ({"changes": {"c": 3}, "remove": ["a", "nowhere"]}, {"b": {"x": 1}, "c": 3}),
        ({"changes": {"t\x00": ["a\x00b"]}}, {"a": 1, "b": {"x": 1}, "t\ufffd": ["a\ufffdb"]}),
    ],
    ids=["one key", "a whole value", "null", "removed", "both", "cleaned"],
)
async def test_the_model_sets_and_removes_keys_and_the_others_stay(given: dict[str, Any], left: dict[str, Any]) -> None:
    leader = responses(calls("update_session_state", **given), text("done"))
    turn = a_turn(session_state={"a": 1, "b": {"x": 1}})
    await Team("t", leader.model, enable_agentic_state=True).run(turn)
    assert turn.session_state == left
    assert all(key in returned(leader.asked[1])[0] for key in left), "it is told what is there now"


@pytest.mark.parametrize("changes", ["lang = de", ["lang"], None])
async def test_a_change_that_is_no_object_is_told_to_the_model(changes: Any) -> None:
    leader = responses(
        calls("update_session_state", changes=changes),
        calls("update_session_state", changes={"lang": "de"}),
        text("done"),
    )
    turn = a_turn()
    assert await Team("t", leader.model, enable_agentic_state=True).run(turn) == "done"
    assert turn.session_state == {"lang": "de"}


# --- what the state begins with


async def test_a_new_session_begins_with_the_team_s_state_and_what_is_there_stays() -> None:
    made = Team("t", says("x"), session_state={"cart": [], "lang": "en"})
    first = a_turn(session_state={"lang": "de"})
    await made.run(first)
    assert first.session_state == {"cart": [], "lang": "de"}
    later = new_turn(a_request(), a_session(session_state={"cart": ["tea"], "lang": None}), context_of(), attempt=1)
    await made.run(later)
    assert later.session_state == {"cart": ["tea"], "lang": None}


async def test_what_a_turn_changes_in_it_is_not_what_the_next_session_begins_with() -> None:
    def add(context: RunContext[Turn]) -> str:
        cart: Any = context.deps.session_state["cart"]
        cart.append("tea")
        return "added"

    mine: dict[str, Any] = {"cart": []}
    made = Team("t", responses(calls("add"), text("x")).model, tools=[Tool(add)], session_state=mine)
    for number in range(2):
        turn = a_turn(session_id=f"s{number}")
        await made.run(turn)
        assert turn.session_state == {"cart": ["tea"]}
    assert mine == {"cart": []}


def test_a_state_that_is_no_json_is_a_mistake_at_the_start() -> None:
    odd: Any = {"connection": object()}
    with pytest.raises((ValueError, InvalidResult), match="session_state"):
        Team("t", says("x"), session_state=odd)


# --- tools that change the state side by side


async def add_async(context: RunContext[Turn]) -> str:
    """Add one, between two awaits."""
    await asyncio.sleep(0)
    count: Any = context.deps.session_state.get("count", 0)
    context.deps.session_state["count"] = count + 1
    await asyncio.sleep(0)
    return "added"


def add_in_thread(context: RunContext[Turn]) -> str:
    """Add one, in a thread, with a pause in which others could read what this one is about to change."""
    count: Any = context.deps.session_state.get("count", 0)
    time.sleep(0.005)
    context.deps.session_state["count"] = count + 1
    return "added"


Given = Callable[[Callable[..., Any]], dict[str, Any]]
"""A way to give an agent a tool."""

_WAYS: dict[str, Given] = {
    "tools": lambda tool: {"tools": [tool]},
    "a toolset": lambda tool: {"toolsets": [FunctionToolset([tool])]},
    "a toolset made at each step": lambda tool: {"toolsets": [lambda _: FunctionToolset([tool])]},
    "a toolset made once a run": lambda tool: {
        "toolsets": [DynamicToolset(lambda _: FunctionToolset([tool]), per_run_step=False)]
    },
    "a toolset made by an async function": lambda tool: {"toolsets": [_made_later(tool)]},
}


def _made_later(tool: Callable[..., Any]) -> Callable[[Any], Awaitable[FunctionToolset[Turn]]]:
    async def make(_: Any) -> FunctionToolset[Turn]:
        await asyncio.sleep(0)
        return FunctionToolset([tool])

    return make


def adding(tool: Callable[..., Any], *, members: int, given_as: Given) -> Team:
    """A team whose members all call the tool twice at once, side by side."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        return text("added") if responses_so_far(messages) else calls(tool.__name__, tool.__name__)

    made = [
        Agent(Recorded(answer).model, name=f"m{number}", deps_type=Turn, **given_as(tool)) for number in range(members)
    ]
    return Team("t", says("x"), members=made, mode="broadcast")


@pytest.mark.parametrize("given_as", _WAYS.values(), ids=_WAYS.keys())
@pytest.mark.parametrize("tool", [add_async, add_in_thread])
async def test_members_that_change_one_key_side_by_side_lose_nothing(tool: Any, given_as: Given) -> None:
    turn = a_turn()
    await adding(tool, members=_PARALLEL, given_as=given_as).run(turn)
    assert turn.session_state == {"count": 2 * _PARALLEL}


async def test_a_leader_s_calls_of_one_response_lose_nothing_either() -> None:
    leader = responses(calls(*["add_in_thread"] * _PARALLEL), text("x"))
    turn = a_turn()
    await Team("t", leader.model, tools=[add_in_thread]).run(turn)
    assert turn.session_state == {"count": _PARALLEL}


async def test_nothing_is_lost_where_some_tools_run_in_threads_and_others_do_not() -> None:
    """While a thread's tool is between its read and its write, an async one must not write."""

    def in_thread(context: RunContext[Turn]) -> str:
        for _ in range(10):
            add_in_thread(context)
        return "added"

    async def on_the_loop(context: RunContext[Turn]) -> str:
        for _ in range(50):
            await add_async(context)
            await asyncio.sleep(0.001)
        return "added"

    leader = responses(calls("in_thread", "on_the_loop"), text("x"))
    turn = a_turn()
    await Team("t", leader.model, tools=[in_thread, on_the_loop]).run(turn)
    assert turn.session_state == {"count": 60}


class _Unreliable(AbstractToolset[Turn]):
    """A toolset of a server that comes and goes."""

    def __init__(self, **raises: Exception) -> None:
        self._raises = raises

    @property
    @override
    def id(self) -> str | None:
        return None

    @override
    async def __aexit__(self, *_: object) -> None:
        if "closed" in self._raises:
            raise self._raises["closed"]

    @override
    async def get_tools(self, ctx: RunContext[Turn]) -> dict[str, ToolsetTool[Turn]]:
        if "listed" in self._raises:
            raise self._raises["listed"]
        return {}

    @override
    async def call_tool(self, *_: Any) -> Any:
        raise AssertionError("it has none")


async def test_an_answer_is_not_lost_for_a_toolset_that_can_not_be_closed() -> None:
    made = Team("t", says("x"), toolsets=[_Unreliable(closed=ConnectionError("gone"))])
    assert await made.run(a_turn()) == "x"


async def test_a_toolset_that_can_not_list_its_tools_is_worth_another_try() -> None:
    with pytest.raises(ToolFailed, match="_Unreliable could not be reached") as failed:
        await Team("t", says("x"), toolsets=[_Unreliable(listed=ConnectionError("gone"))]).run(a_turn())
    assert failed.value.is_retryable


async def test_a_toolset_that_a_function_returns_again_is_entered_once_a_run() -> None:
    class Counted(FunctionToolset[Turn]):
        entered = 0

        @override
        async def __aenter__(self) -> Self:
            self.entered += 1
            return self

    toolset = Counted([add_async])
    leader = responses(calls("add_async"), calls("add_async"), text("x"))
    await Team("t", leader.model, toolsets=[lambda _: toolset]).run(a_turn())
    assert toolset.entered == 1


async def test_an_async_tool_that_waits_for_another_does_not_wait_for_one_in_a_thread() -> None:
    """The thread's waits to be alone with the state until the first has ended, which needs the last."""
    given = asyncio.Event()

    async def takes(context: RunContext[Turn]) -> str:
        await given.wait()
        return context.deps.run_id

    async def gives(context: RunContext[Turn]) -> str:
        given.set()
        return context.deps.run_id

    leader = responses(calls("takes", "add_in_thread", "gives"), text("x"))
    turn = a_turn()
    await Team("t", leader.model, tools=[takes, add_in_thread, gives]).run(turn)
    assert turn.session_state == {"count": 1}


async def test_tools_in_threads_that_do_not_see_the_turn_run_side_by_side() -> None:
    met = threading.Barrier(2, timeout=5)

    def meet() -> str:
        met.wait()
        return "met"

    leader = responses(calls("meet", "meet"), text("done"))
    assert await Team("t", leader.model, tools=[meet]).run(a_turn()) == "done"
    members = [
        Agent(responses(calls("meet"), text("x")).model, name=name, deps_type=Turn, tools=[meet]) for name in "ab"
    ]
    assert await Team("t", says("done"), members=members, mode="broadcast").run(a_turn()) == "done"


async def test_turns_of_different_sessions_do_not_wait_for_each_other_s_tools() -> None:
    met = threading.Barrier(2, timeout=5)

    def meet(context: RunContext[Turn]) -> str:
        met.wait()
        context.deps.session_state["met"] = True
        return "met"

    made = Team("t", responses(calls("meet"), text("x")).model, tools=[meet])
    turns = [a_turn(run_id=f"r{number}", session_id=f"s{number}") for number in range(2)]
    await asyncio.gather(*(made.run(turn) for turn in turns))
    assert [turn.session_state for turn in turns] == [{"met": True}] * 2
