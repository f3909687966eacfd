"""Teams that the web chat talks to in its tests and on its screenshots: all is real but for what the models write.

A question may name a gate, `Trains to Venice? [gate]`: there the answer waits in its middle until the test opens it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from pydantic_ai import Agent, Tool
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCalls, FunctionModel
from pydantic_ai.models.function import DeltaToolCall as Call

from teamturn import Team

Written = AsyncIterator[str | DeltaToolCalls]

HOSTILE = """<script>document.title = "taken"</script><img src=x onerror="document.title = 'taken'">

[a link](javascript:document.title='taken') and ![an image](https://evil.example/pixel.png)

```html
<b onclick="document.title = 'taken'">bold</b>
```"""

ANSWER = """Yes. **Take the 06:25 on Saturday**: you are in Venice before the rain:

| leaves Vienna | changes | arrives Venice |
|---|---|---|
| 06:25 | none | 14:05 |
| 09:25 | Villach | 17:19 |

- Seats in the direct train are few: book by Thursday.
- It rains from about four in the afternoon, so keep an umbrella at hand."""


async def gate(question: str) -> None:
    """Wait where the question says so."""
    found = re.search(r"\[(\w+)\]", question)
    if found is None:
        return
    folder = Path(os.environ["TEST_GATES"])
    with (folder / f"{found[1]}.reached").open("a") as reached:
        reached.write("here\n")
    while not (folder / f"{found[1]}.open").exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)


def asked(messages: list[ModelMessage]) -> str:
    """What the model is asked: the latest prompt."""
    prompts = [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return str(prompts[-1])


def returned(messages: list[ModelMessage]) -> int:
    """How many tools have returned in this run."""
    last = max(number for number, one in enumerate(messages) if any(isinstance(p, UserPromptPart) for p in one.parts))
    requests = (one for one in messages[last:] if isinstance(one, ModelRequest))
    return sum(isinstance(part, ToolReturnPart) for one in requests for part in one.parts)


def writer(write: Callable[[list[ModelMessage]], Written]) -> FunctionModel:
    """A model of a function that needs nothing but what was said."""

    def stream(messages: list[ModelMessage], _: AgentInfo) -> Written:
        return write(messages)

    return FunctionModel(stream_function=stream, model_name="written")


async def _plain(messages: list[ModelMessage]) -> Written:
    question = asked(messages)
    if "hostile" in question:
        yield HOSTILE
        return
    yield "The first half, "
    await gate(question)
    yield "and the **second** half."


def _member(tool: str, arguments: str, text: str) -> FunctionModel:
    async def write(messages: list[ModelMessage]) -> Written:
        if not returned(messages):
            yield {0: Call(name=tool, json_args=arguments, tool_call_id=f"call-{tool}")}
            return
        first, _, rest = text.partition(". ")
        yield f"{first}. "
        await gate(asked(messages))
        yield rest

    return writer(write)


async def _planner(messages: list[ModelMessage]) -> Written:
    question = asked(messages)
    done = returned(messages)
    if not done:
        yield "I'll look at the trains and at the weather."
        for number, member in enumerate(("timetable", "weather")):
            task = f'{{"member_id": "{member}", "task": {_quoted(question)}}}'
            yield {number: Call(name="delegate_task", json_args=task, tool_call_id=f"call-{member}")}
        return
    for word in re.findall(r"\S+\s*", ANSWER):
        yield word


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def trains(origin: str, destination: str, day: str) -> str:
    """Look up trains."""
    return f"06:25 direct, 09:25 by Villach: {origin} to {destination} on {day}"


def forecast(city: str, day: str) -> str:
    """Look up the weather."""
    return f"{city} on {day}: 17 °C, rain from 16:00"


timetable = Agent(
    _member(
        "trains",
        '{"origin": "Vienna", "destination": "Venice", "day": "Saturday"}',
        "There are two good trains. The 06:25 goes through and arrives at 14:05; the 09:25 changes in Villach.",
    ),
    name="timetable",
    description="Knows the trains.",
    tools=[trains],
)
weather = Agent(
    _member(
        "forecast",
        '{"city": "Venice", "day": "Saturday"}',
        "It stays dry until the afternoon. Rain comes at about four, at 17 °C.",
    ),
    name="weather",
    description="Knows the weather.",
    tools=[forecast],
)


def book(train: str, seats: int) -> str:
    """Book seats, which costs money."""
    return f"{seats} seats in the {train} are booked"


async def _clerk(messages: list[ModelMessage]) -> Written:
    if returned(messages):
        results = [part.content for one in messages for part in one.parts if isinstance(part, ToolReturnPart)]
        yield f"The desk says: {results[-1]}."
        return
    yield {0: Call(name="book", json_args='{"train": "06:25", "seats": 2}', tool_call_id="call-book")}


clerk = Team("clerk", writer(_clerk), tools=[Tool(book, requires_approval=True)])

travel = Team("travel", writer(_planner), members=[timetable, weather])
plain = Team("plain", writer(_plain))

teams = [travel, plain, clerk]
