"""Turns that somebody watches, cancels, joins or has to approve, in workers that are killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from teamturn import Team, Turn
from tests.data.durable_teams import steps, through


def _returned(messages: list[ModelMessage]) -> list[Any]:
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


async def _shop(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Ask for a payment, and answer at a gate."""
    found = _returned(messages)
    await through("answer-gate" if found else "question")
    if found:
        return ModelResponse(parts=[TextPart(", ".join(found))])
    return ModelResponse(parts=[ToolCallPart("pay", {"amount": 3}, tool_call_id="pay-1")])


async def pay(context: RunContext[Turn], amount: int) -> str:
    """Pay so much."""
    context.deps.session_state["paid"] = context.deps.session_state.get("paid", 0) + amount
    return f"{await through('pay')} {amount}"


async def _teller(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
    """Look something up, and tell of it, with a gate in the middle."""
    if not _returned(messages):
        yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="look-1")}
        return
    yield "Once "
    await through("story-gate")
    yield "upon a time."


async def look() -> str:
    """Look it up."""
    return await through("look")


cashier = Agent(
    FunctionModel(_shop, model_name="shop"), name="cashier", deps_type=Turn, tools=[Tool(pay, requires_approval=True)]
)


def _lead(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    found = _returned(messages)
    if found:
        return ModelResponse(parts=[TextPart(f"done: {', '.join(found)}")])
    task = {"member_id": "cashier", "task": "sell"}
    return ModelResponse(parts=[ToolCallPart("delegate_task", task, tool_call_id="task-1")])


everything = [
    steps,
    Team("shop", FunctionModel(_lead, model_name="leader"), members=[cashier]),
    Team("teller", FunctionModel(stream_function=_teller, model_name="teller"), tools=[look]),
]
