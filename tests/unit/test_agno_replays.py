"""Agno's teams whose turns are taken again behind a journal that is complete: nothing is asked for, or done, again."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from agno.agent import Agent
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.run import RunContext
from agno.team.mode import TeamMode
from agno.tools.function import Function
from agno.workflow import Parallel, Step, Workflow
from pydantic import AliasChoices, BaseModel, Field, computed_field
from structlog.typing import EventDict

from schemas.replies import RunStatus
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in
from tests.unit.books import Book
from worker.agno.executor import AgnoExecutor


class Till:
    """Where payments are made, each counted."""

    def __init__(self) -> None:
        self.paid: list[int] = []

    async def pay(self, amount: int) -> str:
        """Pay."""
        await asyncio.sleep(0)
        self.paid.append(amount)
        return f"receipt {len(self.paid)}"

    def buyer(self, answer: Callable[[list[Message]], Any], **fields: Any) -> Agent:
        """An agent that can pay, and says what it was told then."""

        async def answered(messages: list[Message]) -> Any:
            await asyncio.sleep(0)  # others are asked meanwhile
            made = " ".join(results_in(messages)) or answer(messages)
            return await made if hasattr(made, "__await__") else made

        tool = Function(name="pay", entrypoint=self.pay)
        return an_agent(Scripted(answered), **{"id": "buyer", "name": "buyer", "tools": [tool], **fields})


def _both(messages: list[Message]) -> str:
    return " | ".join(results_in(messages))


async def test_calls_to_which_a_provider_gave_no_ids_are_made_once_each() -> None:
    till, book = Till(), Book()
    payments = [("pay", {"amount": 1}), ("pay", {"amount": 1})]

    def answer(_: list[Message]) -> ModelResponse:
        answered = calls(*payments)
        answered.tool_calls[0]["id"] = None
        del answered.tool_calls[1]["id"]
        return answered

    executor = AgnoExecutor(a_team(till.buyer(answer).model, tools=[till.pay]))
    first = await book.attempt(executor)
    assert await book.attempt(executor) == first
    assert till.paid == [1, 1]


async def test_a_call_without_an_id_is_found_behind_an_answer_that_can_t_be_recorded() -> None:
    till, book = Till(), Book()

    def answer(_: list[Message]) -> ModelResponse:
        answered = calls(("pay", {"amount": 1}), ids=[""])
        answered.provider_data = {"raw": object()}
        return answered

    executor = AgnoExecutor(a_team(till.buyer(answer).model, tools=[till.pay]))
    first = await book.attempt(executor)
    assert await book.attempt(executor) == first
    assert till.paid == [1]


async def test_steps_side_by_side_that_ask_the_same_are_each_recorded(logged: list[EventDict]) -> None:
    till, book = Till(), Book(fields={"workflow_id": "w1"})
    buyer = till.buyer(lambda _: calls(("pay", {"amount": 1})))
    both = Parallel(Step(name="one", agent=buyer), Step(name="two", agent=buyer))
    executor = AgnoExecutor(Workflow(id="w1", steps=[both], telemetry=False))
    await book.attempt(executor)
    again = await book.attempt(executor)
    assert again.status is RunStatus.COMPLETED
    assert till.paid == [1, 1]
    assert logged == []


async def test_a_member_that_is_given_one_task_twice_does_it_twice_and_no_more(logged: list[EventDict]) -> None:
    till, book = Till(), Book()
    buyer = till.buyer(lambda _: calls(("pay", {"amount": 1})))
    lead = Scripted(lambda messages: _both(messages) or delegates(("buyer", "pay"), ("buyer", "pay")))
    executor = AgnoExecutor(a_team(lead, buyer))
    await book.attempt(executor)
    await book.attempt(executor)
    assert till.paid == [1, 1]
    assert logged == []


async def test_calls_of_one_id_in_conversations_side_by_side_are_told_apart(logged: list[EventDict]) -> None:
    till, book = Till(), Book()
    second_paid = asyncio.Event()

    async def answer(messages: list[Message]) -> ModelResponse:
        first = "first" in str(messages[-1].content)
        if first:
            await second_paid.wait()
        second_paid.set()
        return calls(("pay", {"amount": 1 if first else 2}), ids=["functions.pay:0"])

    lead = Scripted(lambda messages: _both(messages) or delegates(("buyer", "first"), ("buyer", "second")))
    executor = AgnoExecutor(a_team(lead, till.buyer(answer)))
    first = await book.attempt(executor)
    assert await book.attempt(executor) == first
    assert till.paid == [2, 1]
    assert logged == []


@pytest.mark.parametrize("declared", [{}, {"has_side_effects": False}], ids=["recorded first", "may be repeated"])
async def test_the_state_is_that_after_the_call_that_ended_last(declared: dict[str, Any]) -> None:
    ended = {number: asyncio.Event() for number in range(4)}
    ended[0].set()

    async def add(run_context: RunContext, number: int) -> str:
        """Add, the lowest number first."""
        await ended[number - 1].wait()
        state = run_context.session_state
        assert state is not None
        state["sum"] = state.get("sum", 0) + number
        state.pop("draft", None)
        state |= {"draft": "yes"} if number == 2 else {}
        ended[number].set()
        return f"sum {state['sum']}"

    asked = [("add", {"number": number}) for number in (3, 1, 2)]
    model = Scripted(lambda messages: _both(messages) or calls(*asked))
    executor = AgnoExecutor(a_team(model, tools=[Function(name="add", entrypoint=add, **declared)]))
    book = Book(fields={"session_state": {"draft": "no"}})
    first = await book.attempt(executor)
    assert (first.content, first.session_state) == ("sum 6 | sum 1 | sum 3", {"sum": 6})
    assert await book.attempt(executor) == first


async def test_a_change_is_made_again_though_it_is_the_first_thing_that_was_recorded() -> None:
    count = itertools.count()

    def put(run_context: RunContext) -> str:
        """Put."""
        assert next(count) == 0
        assert run_context.session_state is not None
        run_context.session_state["put"] = 1
        return "put"

    def answer(messages: list[Message]) -> ModelResponse:
        said = ModelResponse(content="done") if results_in(messages) else calls(("put", {}), ids=["c1"])
        said.provider_data = {"raw": object()}
        return said

    tool = Function(name="put", entrypoint=put, has_side_effects=False)
    executor, book = AgnoExecutor(a_team(Scripted(answer), tools=[tool])), Book()
    await book.attempt(executor)
    assert (await book.attempt(executor)).session_state == {"put": 1}


class Inner(BaseModel):
    street: str = Field(default="?", alias="streetName")


class Aliased(BaseModel):
    name: str = Field(alias="cityName")
    size: int = Field(default=0, validation_alias=AliasChoices("howLarge", "large"))
    inner: Inner


class Computed(BaseModel, extra="forbid"):
    name: str

    @computed_field
    def loud(self) -> str:
        return self.name.upper()


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (Aliased, '{"cityName": "Paris", "howLarge": 2, "inner": {"streetName": "Rue"}}'),
        (Computed, '{"name": "Paris"}'),
    ],
    ids=["aliases", "not to be read as it was told"],
)
async def test_an_output_that_a_model_has_parsed_is_given_again(schema: type[BaseModel], said: str) -> None:
    parsed = schema.model_validate_json(said)
    model = Scripted(lambda _: ModelResponse(role="assistant", content=said, parsed=parsed))
    model.supports_native_structured_outputs = True
    executor, book = AgnoExecutor(a_team(model, output_schema=schema)), Book()
    first = await book.attempt(executor)
    assert first.status is RunStatus.COMPLETED
    assert await book.attempt(executor) == first
    assert len(model.asked) == 1


class _Words:
    """What is iterated over, and no generator."""

    def __init__(self) -> None:
        self._left = ["a", "b"]

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


def _generated() -> Iterator[str]:
    yield from "ab"


@pytest.mark.parametrize(
    "said", [lambda: map(str, "ab"), _Words, _generated], ids=["iterator", "async iterator", "generator"]
)
async def test_a_tool_that_says_bit_by_bit_is_heard_to_its_end_in_each_attempt(said: Callable[[], object]) -> None:
    count = itertools.count()

    def say() -> object:
        """Say."""
        next(count)
        return said()

    executor = AgnoExecutor(a_team(Scripted(lambda messages: _both(messages) or calls(("say", {}))), tools=[say]))
    book = Book()
    first = await book.attempt(executor)
    assert first.content == "ab"
    assert await book.attempt(executor) == first
    assert next(count) == 2


async def test_a_leader_s_tasks_have_the_same_ids_again(logged: list[EventDict]) -> None:
    till, book = Till(), Book()

    def lead(messages: list[Message]) -> Any:
        done = results_in(messages)
        ids = [found[1] for result in done if (found := re.match(r"Task created: \[(\w{8})\]", result))]
        match len(done):
            case 0:
                return calls(*(("create_task", {"title": title, "assignee": "buyer"}) for title in ("one", "two")))
            case 2:
                return calls(*(("execute_task", {"task_id": one, "member_id": "buyer"}) for one in ids))
            case 4:
                return calls(("mark_all_complete", {"summary": "done"}))
            case _:
                return f"{len(set(ids))} tasks: {done[2]} {done[3]}"

    model = Scripted(lead)
    buyer = till.buyer(lambda _: calls(("pay", {"amount": 1})))
    executor = AgnoExecutor(a_team(model, buyer, mode=TeamMode.tasks))
    first = await book.attempt(executor)
    assert "2 tasks: " in str(first.content)
    assert str(first.content).count("completed") == 2
    asked = len(model.asked)
    again = await book.attempt(executor)
    assert again.content == first.content
    assert (till.paid, len(model.asked)) == ([1, 1], asked)
    assert logged == []
