"""What the workers execute while everything breaks. Every step calls the model stub, which counts it.

`count` in the session's state is the number of turns that completed, however often each of them was begun.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import httpx2
from pydantic import JsonValue
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from teamturn import Team, Turn, executor
from tests.chaos.script import BEGUN, BETWEEN, DIRECT, Order

URL_VARIABLE: Final = "CHAOS_MODEL_URL"
_MOST_DEATHS: Final = 5
"""Of a poisonous request, in case that nobody recognizes it: the others are to have their answers."""

_url = os.environ.get(URL_VARIABLE, "http://127.0.0.1:1/v1")
# The key says who calls.
_worker = str(os.getpid())
_client = httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None))
_provider = OpenAIProvider(base_url=_url, api_key=_worker, http_client=_client)


async def ask(order: Order, step: str) -> str:
    """Make the call that is a step."""
    body = {"model": DIRECT, "messages": [{"role": "user", "content": order.at(step).text}]}
    headers = {"Authorization": f"Bearer {_worker}"}
    response = await _client.post(f"{_url}/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def _counted(turn: Turn, name: str = "count") -> int:
    number = int(turn.session_state.get(name, 0)) + 1
    turn.session_state[name] = number
    return number


@executor("echo")
async def echo(turn: Turn) -> JsonValue:
    """Answer at once."""
    order = Order.read(turn.input)
    if order.hold == BEGUN:
        await ask(order, BEGUN)
    return {"run": order.run, "count": _counted(turn)}


@executor("steps")
async def steps(turn: Turn) -> JsonValue:
    """Take three steps, of which the second must not be made twice and changes the state."""
    order = Order.read(turn.input)
    if order.hold == BEGUN:
        await ask(order, BEGUN)

    async def pay() -> str:
        answer = await ask(order, "pay")
        _counted(turn, "paid")
        return answer

    results = [await turn.step("first", lambda: ask(order, "first"), repeatable=True)]
    if order.hold == BETWEEN:
        await ask(order, BETWEEN)
    results.append(await turn.step("pay", pay))
    results.append(await turn.step("last", lambda: ask(order, "last"), repeatable=True))
    return {"run": order.run, "count": _counted(turn), "results": results}


@executor("poison")
async def poison(turn: Turn) -> JsonValue:
    """Kill the worker, if the order says so."""
    order = Order.read(turn.input)
    if order.poison and turn.attempt <= _MOST_DEATHS:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"run": order.run, "count": _counted(turn)}


async def pay(context: RunContext[Turn], order: str) -> str:
    """Pay, which must not be done twice."""
    answer = await ask(Order.read(order), "buyer/pay")
    _counted(context.deps)
    return answer


team = Team(
    id="team",
    model=OpenAIChatModel("leader", provider=_provider),
    members=[
        Agent(OpenAIChatModel("reader", provider=_provider), name="reader", deps_type=Turn),
        Agent(OpenAIChatModel("buyer", provider=_provider), name="buyer", deps_type=Turn, tools=[Tool(pay)]),
    ],
)

everything = [echo, steps, poison, team]
