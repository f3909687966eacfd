"""Agno's teams and the journal: answers and tool calls that were recorded are not made again by a later attempt."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from agno.db.in_memory import InMemoryDb
from agno.exceptions import StopAgentRun
from agno.media import Image
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.run import RunContext
from agno.tools.function import Function, ToolResult
from agno.tools.mcp import MCPTools
from agno.workflow import Step, StepInput, StepOutput, Workflow
from pydantic import BaseModel
from structlog.testing import capture_logs

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in, told
from tests.unit.books import Book
from worker.agno.executor import AgnoExecutor
from worker.errors import LaneLost
from worker.executors.journal import StepState


class World:
    """A team of a leader, two members that work side by side and have tools, and everything that is called, counted."""

    def __init__(self, **declared: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.declared = declared
        """Of the tool that pays."""

    def says(self, name: str, answer: Callable[[list[Message]], Any]) -> Scripted:
        def counted(messages: list[Message]) -> Any:
            self.calls[f"{name} {len(results_in(messages))}"] += 1
            return answer(messages)

        return Scripted(counted)

    def pay(self, run_context: RunContext, amount: int) -> str:
        """Pay."""
        self.calls["pay"] += 1
        assert run_context.session_state is not None
        run_context.session_state["paid"] = run_context.session_state.get("paid", 0) + amount
        return f"receipt {amount}"

    def executor(self, **fields: Any) -> AgnoExecutor:
        lead = self.says(
            "lead", lambda messages: " | ".join(results_in(messages)) or delegates(("buyer", "buy"), ("asker", "ask"))
        )
        buy = self.says("buy", lambda messages: " ".join(results_in(messages)) or calls(("pay", {"amount": 3})))
        members = [
            an_agent(buy, id="buyer", name="buyer", tools=[Function(name="pay", entrypoint=self.pay, **self.declared)]),
            an_agent(self.says("ask", lambda _: "asked"), id="asker", name="asker"),
        ]
        return AgnoExecutor(a_team(lead, *members, **fields))


@pytest.mark.parametrize("dies_at", range(1, 7))
async def test_whenever_the_lane_is_lost_each_call_that_was_recorded_is_made_once(dies_at: int) -> None:
    world, book = World(has_side_effects=False), Book(dies_at=dies_at)
    outcome = await book.until_done(world.executor(add_datetime_to_context=True))
    assert outcome.status is RunStatus.COMPLETED, outcome.error
    assert outcome.content == "receipt 3 | asked"
    assert outcome.session_state == {"paid": 3}
    # What was under way when the lane was lost is made again, and no more: two members work side by side.
    assert sum(world.calls.values()) <= 6 + 2
    assert max(world.calls.values()) <= 2


async def test_what_is_recorded_to_its_end_is_asked_for_by_nobody_again() -> None:
    world, book = World(), Book()
    first = await book.attempt(world.executor())
    made = dict(world.calls)
    with capture_logs() as logs:
        second = await book.attempt(world.executor())
    assert second == first
    assert world.calls == made
    assert made == {"lead 0": 1, "buy 0": 1, "ask 0": 1, "pay": 1, "buy 1": 1, "lead 2": 1}
    assert [entry["event"] for entry in logs] == []


async def test_steps_have_the_names_of_who_asks_and_what_is_called() -> None:
    book = Book()
    await book.attempt(World().executor())
    parts = [(key.partition("[")[0], key.partition("]/")[2]) for key in book.recorded()]
    assert sorted(parts) == [
        ("asker", "model.request#1"),
        ("buyer", "model.request#1"),
        ("buyer", "model.request#1"),
        ("buyer", "tool:pay#1"),
        ("t1", "model.request#1"),
        ("t1", "model.request#1"),
    ]
    assert sum(step.input_tokens for step in book.steps.values()) == 50


async def test_what_a_later_attempt_replays_is_counted_as_used() -> None:
    world, book = World(), Book()
    await book.attempt(world.executor())
    await book.attempt(world.executor())
    assert book.turn is not None
    usage = book.turn.usage
    assert (usage.model_requests, usage.input_tokens, usage.tool_calls) == (5, 50, 3)


async def test_a_tool_whose_end_is_not_known_ends_the_turn_as_uncertain() -> None:
    hang = asyncio.Event()
    begun = asyncio.Event()

    async def pay(amount: int) -> str:
        """Pay."""
        begun.set()
        await hang.wait()
        return f"receipt {amount}"

    executor = AgnoExecutor(a_team(Scripted(lambda _: calls(("pay", {"amount": 3}), ids=["c1"])), tools=[pay]))
    book = Book()
    dying = asyncio.create_task(book.attempt(executor))
    await begun.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    outcome = await book.attempt(executor)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.STEP_UNCERTAIN
    assert re.search(r"t1\[c1 \w{16}\]/tool:pay#1", outcome.error.message)


@pytest.mark.parametrize(
    "declared",
    [{"has_side_effects": False}, {"annotations": {"readOnlyHint": True}}, {"annotations": {"idempotentHint": True}}],
    ids=lambda declared: next(iter(str(value) for value in declared.values())),
)
async def test_a_tool_that_is_declared_to_have_no_side_effects_is_called_again(declared: dict[str, Any]) -> None:
    begun, count = asyncio.Event(), itertools.count()

    async def look() -> str:
        """Look."""
        begun.set()
        if next(count) == 0:
            await asyncio.Event().wait()
        return "seen"

    tool = Function(name="look", entrypoint=look, **declared)
    model = Scripted(lambda messages: " ".join(results_in(messages)) or calls(("look", {}), ids=["c1"]))
    executor, book = AgnoExecutor(a_team(model, tools=[tool])), Book()
    dying = asyncio.create_task(book.attempt(executor))
    await begun.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    assert (await book.attempt(executor)).content == "seen"


async def test_a_tool_that_failed_is_told_to_have_failed_again() -> None:
    count = itertools.count()

    def look() -> str:
        """Look."""
        if next(count) == 0:
            raise ValueError("not there")
        raise AssertionError("called again")

    model = Scripted(lambda messages: " ".join(results_in(messages)) or calls(("look", {}), ids=["c1"]))
    executor, book = AgnoExecutor(a_team(model, tools=[look])), Book(dies_at=4)
    with pytest.raises(LaneLost):
        await book.attempt(executor)
    outcome = await book.attempt(executor)
    assert "not there" in str(outcome.content)
    assert book.turn is not None
    assert book.turn.usage.tool_calls == 0


async def test_a_tool_s_media_and_its_wish_to_stop_are_given_again() -> None:
    count = itertools.count()

    def draw() -> ToolResult:
        """Draw."""
        assert next(count) == 0
        return ToolResult(content="drawn", images=[Image(content=b"png", mime_type="image/png", id="i1")])

    def stop() -> str:
        """Stop."""
        assert next(count) == 1
        raise StopAgentRun("enough", agent_message=Message(role="assistant", content="bye"))

    def answer(messages: list[Message]) -> Any:
        drawn = any(message.role == "tool" for message in messages)
        return calls(("stop", {}), ids=["c2"]) if drawn else calls(("draw", {}), ids=["c1"])

    executor, book = AgnoExecutor(a_team(Scripted(answer), tools=[draw, stop])), Book(dies_at=7)
    first = await book.until_done(executor)
    assert book.turn is not None
    images = book.turn.details["images"]
    assert (images[0]["id"], images[0]["mime_type"]) == ("i1", "image/png")
    again = await book.attempt(executor)
    assert again == first
    assert book.turn.details["images"] == images


async def test_a_tool_that_agno_adds_is_made_again_and_changes_the_state_again() -> None:
    model = Scripted(
        lambda messages: (
            "done"
            if results_in(messages)
            else calls(("update_session_state", {"session_state_updates": {"a": 1}}), ids=["c1"])
        )
    )
    executor, book = AgnoExecutor(a_team(model, enable_agentic_state=True)), Book()
    first = await book.attempt(executor)
    second = await book.attempt(executor)
    assert first.session_state == second.session_state == {"a": 1}
    assert len(model.asked) == 2


async def test_memories_are_written_by_a_recorded_answer() -> None:
    def answer(messages: list[Message]) -> Any:
        if "Memory Manager" in told(messages):
            remembered = ("add_memory", {"memory": "likes tea", "topics": ["tea"]})
            return "done" if results_in(messages) else calls(remembered, ids=["m1"])
        return "noted"

    model, book = Scripted(answer), Book(fields={"user_id": "u1"})
    executor = AgnoExecutor(a_team(model, db=InMemoryDb(), update_memory_on_run=True))
    await book.attempt(executor)
    # A memory manager does not say for which run it asks.
    assert sorted(key.partition("[")[0] for key in book.recorded()) == ["model", "model", "t1"]


async def test_structured_output_of_a_model_that_parses_it_is_given_again() -> None:
    class City(BaseModel):
        name: str

    model = Scripted(lambda _: ModelResponse(role="assistant", content='{"name": "Paris"}', parsed=City(name="Paris")))
    model.supports_native_structured_outputs = True
    executor, book = AgnoExecutor(a_team(model, output_schema=City)), Book()
    first = await book.attempt(executor)
    second = await book.attempt(executor)
    assert first.content == second.content == {"name": "Paris"}
    assert len(model.asked) == 1


async def test_an_answer_that_json_can_t_hold_is_given_and_asked_for_again() -> None:
    model = Scripted(lambda _: ModelResponse(role="assistant", content="fine", provider_data={"raw": object()}))
    executor, book = AgnoExecutor(a_team(model)), Book()
    with capture_logs() as logs:
        assert (await book.attempt(executor)).content == "fine"
    assert [entry["event"] for entry in logs if "recorded" in entry["event"]] == ["agno_answer_not_recorded"]
    assert book.recorded() == []


async def test_a_workflow_goes_on_behind_what_its_agents_have_answered() -> None:
    world = World()

    def join(step_input: StepInput) -> StepOutput:
        world.calls["join"] += 1
        return StepOutput(content=f"{step_input.previous_step_content}!")

    steps = [
        Step(name="one", agent=an_agent(world.says("one", lambda _: "first"), id="one", name="one")),
        Step(name="join", executor=join),
        Step(name="two", agent=an_agent(world.says("two", lambda _: "second"), id="two", name="two")),
    ]
    executor = AgnoExecutor(Workflow(id="w1", steps=steps, telemetry=False))
    book = Book(fields={"workflow_id": "w1"}, dies_at=2)
    outcome = await book.until_done(executor)
    assert outcome.content == "second"
    assert world.calls == {"one 0": 1, "join": 2, "two 0": 2}


async def test_without_a_journal_nothing_is_recorded() -> None:
    world = World()
    team = a_team(world.says("lead", lambda _: "fine"))
    executor = AgnoExecutor(team, journal=False)
    assert executor.journal is False


async def test_a_member_s_state_that_shows_its_run_s_id_is_found_again() -> None:
    member = Scripted("done")
    lead = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("a1", "go")))
    team = a_team(lead, an_agent(member, add_session_state_to_context=True), session_state={"n": 1})
    executor, book = AgnoExecutor(team), Book(dies_at=3)
    await book.until_done(executor)
    assert len(member.asked) == 1
    assert StepState.FAILED not in {step.state for step in book.steps.values()}


async def test_tools_of_an_mcp_server_are_recorded_and_each_turn_has_a_connection_of_its_own() -> None:
    server = MCPTools(command=f"{sys.executable} -m tests.data.mcp_prices", timeout_seconds=60)
    model = Scripted(
        lambda messages: " ".join(results_in(messages)) or calls(("price_of", {"thing": "tea"}), ids=["c1"])
    )
    executor, books = AgnoExecutor(a_team(model, tools=[server])), [Book(), Book()]
    # Agno closes what it has connected for a run: were it the same, it would be another turn's as well.
    outcomes = await asyncio.gather(*(book.attempt(executor) for book in books))
    assert [outcome.content for outcome in outcomes] == ["tea costs 7", "tea costs 7"]
    assert [key.partition("]/")[2] for key in books[0].recorded() if "tool:" in key] == ["tool:price_of#1"]
    assert server.initialized is False
