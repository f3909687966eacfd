"""Turns with steps, whose workers are killed: what is called leaves a line in a file of the gates."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from teamturn import Team, Turn, executor
from tests.data.acceptance_teams import gated


def _visit(name: str) -> Path:
    folder = Path(os.environ["TEST_GATES"])
    with (folder / f"{name}.reached").open("a") as reached:
        reached.write("here\n")
    return folder / f"{name}.open"


async def through(name: str) -> str:
    opened = _visit(name)
    while "gate" in name and not opened.exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)
    return name


@executor("steps")
async def steps(turn: Turn) -> Any:
    """Make a step of each word of the input; one with "gate" in it waits there. Those with a `?` are repeatable."""
    made = []
    for word in turn.input.split():
        name = word.removesuffix("?")

        async def make(name: str = name) -> str:
            turn.session_state["made"] = [*turn.session_state.get("made", []), name]
            return await through(name)

        made.append(await turn.step(name, make, repeatable=word.endswith("?")))
    return made


@executor("killer")
async def killer(turn: Turn) -> Any:
    """Kill the worker, once the attempt is recorded, unless it is told that there is no need to, or is cured."""
    cured = _visit(f"killer-{turn.input}").with_name("cured.open")
    await asyncio.sleep(0.2)
    if turn.input != "harmless" and not cured.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return turn.input


@executor("fruitful-killer")
async def fruitful_killer(turn: Turn) -> Any:
    """Kill the worker after one more step than in the attempt before; at last, none."""
    for number in range(1, 6):
        await turn.step(f"step-{number}", lambda: None, repeatable=True)
        if turn.attempt == number:
            os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _answering(name: str, *, leads: bool = False, pays: bool = False) -> FunctionModel:
    async def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        said = sum(isinstance(message, ModelResponse) for message in messages)
        await through(f"{name}-{said}")
        usage = RequestUsage(input_tokens=10, output_tokens=2)
        if leads and not said:
            tasks = [{"member_id": member, "task": f"do it, {member}"} for member in ("payer", "asker")]
            calls = [ToolCallPart("delegate_task", task, tool_call_id=os.urandom(4).hex()) for task in tasks]
            return ModelResponse(parts=calls, usage=usage)
        if pays and not said:
            return ModelResponse(parts=[ToolCallPart("pay", {"amount": 3}, tool_call_id="pay-1")], usage=usage)
        told = [
            str(part.content)
            for message in messages
            if isinstance(message, ModelRequest)
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]
        return ModelResponse(parts=[TextPart(f"{name}: {', '.join(told) or 'asked'}")], usage=usage)

    return FunctionModel(respond, model_name=name)


async def pay(context: RunContext[Turn], amount: int) -> str:
    """Pay so much."""
    context.deps.session_state["paid"] = context.deps.session_state.get("paid", 0) + amount
    await through("pay")
    return f"receipt {amount}"


def _crew(id: str, leader: str, payer: str, asker: str) -> Team:  # noqa: A002 - as in Team
    members = [
        Agent(_answering(payer, pays=True), name="payer", deps_type=Turn, tools=[Tool(pay)]),
        Agent(_answering(asker), name="asker", deps_type=Turn),
    ]
    return Team(id, _answering(leader, leads=True), members=members)


everything = [
    steps,
    killer,
    fruitful_killer,
    gated,
    _crew("crew-stuck-leader", "leader-gate", "payer", "asker"),
    _crew("crew-stuck-asker", "leader", "payer", "asker-gate"),
]
