"""Teams to chat with, on models that need no network; what they do hangs on what they are told.

A model that is told `hold NAME` waits at the gate of that name, as the executors of acceptance_teams.py do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from teamturn import Team, Turn, executor

LONG = " ".join(f"word{number}" for number in range(60))
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\rover"
ANSWERS = {"long": LONG, "hostile": HOSTILE, "lines": "one\n\n  two\nthree", "wide": "会議 " * 50}


def _asked(messages: list[ModelMessage]) -> str:
    """What was said last."""
    prompts = [
        str(part.content)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]
    return prompts[-1]


async def _gate(name: str) -> None:
    folder = Path(os.environ["TEST_GATES"])
    with (folder / f"{name}.reached").open("a") as reached:
        reached.write("here\n")
    while not (folder / f"{name}.open").exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)


async def _answers(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    asked = _asked(messages)
    word, _space, rest = asked.partition(" ")
    if word == "hold":
        yield f"before {rest}, "
        await _gate(rest)
        yield "and behind"
        return
    for piece in ANSWERS.get(asked, f"You said {asked}.").split(" "):
        await asyncio.sleep(0)
        yield f"{piece} "


def _calls_first(calls: dict[str, str], *pieces: str) -> FunctionModel:
    """A model that calls tools, and then writes an answer."""

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        if isinstance(messages[-1].parts[-1], ToolReturnPart):
            for piece in pieces:
                yield piece
        else:
            yield {
                number: DeltaToolCall(name=tool, json_args=arguments, tool_call_id=f"call-{tool}")
                for number, (tool, arguments) in enumerate(calls.items())
            }

    return FunctionModel(stream_function=stream, model_name="told")


async def _pays(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
    """Ask to pay twice, and then say what came of it."""
    came = [str(part.content) for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    if came:
        yield " and ".join(came)
    else:
        yield {
            number: DeltaToolCall(name="pay", json_args=f'{{"whom": "{whom}"}}', tool_call_id=f"call-{whom}")
            for number, whom in enumerate(("ann", "bob"))
        }


def pay(whom: str) -> str:
    return f"paid {whom}"


def remember(context: RunContext[Turn], what: str) -> str:
    context.deps.session_state["seen"] = what
    return "remembered"


_clerk = Agent(
    _calls_first({"remember": '{"what": "tea"}'}, "The tea ", "is ready."),
    name="clerk",
    deps_type=Turn,
    tools=[remember],
)


@executor("broken")
async def broken(turn: Turn) -> str:
    """Fail, unless it is told to get well."""
    if turn.input == "get well":
        return "well"
    raise RuntimeError("something internal")


everything = [
    Team("talker", FunctionModel(stream_function=_answers, model_name="talker"), history_runs=3),
    Team(
        "shop",
        _calls_first({"delegate_task": '{"member_id": "clerk", "task": "serve"}'}, "Here ", "you are."),
        members=[_clerk],
    ),
    Team(
        "till",
        FunctionModel(stream_function=_pays, model_name="told"),
        tools=[Tool(pay, requires_approval=True)],
    ),
    broken,
]
