"""Agno's teams and agents for tests: of a model that answers as the test says."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from agno.agent import Agent
from agno.metrics import MessageMetrics
from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.team import Team

Answer = Callable[[list[Message]], Any]
"""What a model answers: text, or a ModelResponse, or an awaitable of either."""

_CALL_IDS = itertools.count()


class Scripted(Model):
    """A model that answers as `answer` says, and keeps what it was asked."""

    def __init__(self, answer: Answer | str = "fine", *, tokens: tuple[int, int] = (10, 2)) -> None:
        super().__init__(id="scripted", name="Scripted", provider="Test")
        self.answer = answer
        self.tokens = tokens
        self.asked: list[list[Message]] = []
        """The messages of each request."""
        self.given: list[dict[str, Any]] = []
        """What else came with it: tools, the form asked for."""

    async def ainvoke(self, messages: list[Message], **given: Any) -> ModelResponse:
        self.asked.append(list(messages))
        self.given.append(given)
        answer = self.answer(messages) if callable(self.answer) else self.answer
        if hasattr(answer, "__await__"):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        made = answer if isinstance(answer, ModelResponse) else ModelResponse(role="assistant", content=answer)
        made.response_usage = MessageMetrics(input_tokens=self.tokens[0], output_tokens=self.tokens[1])
        return made

    def invoke(self, *_: Any, **__: Any) -> ModelResponse:
        raise AssertionError("a worker asks without waiting for it")

    def invoke_stream(self, *_: Any, **__: Any) -> Iterator[ModelResponse]:
        raise AssertionError("nothing streams yet")

    async def ainvoke_stream(self, *_: Any, **__: Any) -> AsyncIterator[ModelResponse]:
        yield ModelResponse()
        raise AssertionError("nothing streams yet")

    def _parse_provider_response(self, response: Any, **_: Any) -> ModelResponse:
        raise AssertionError(response)

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        raise AssertionError(response)


def calls(*made: tuple[str, dict[str, Any]], ids: list[str] | None = None) -> ModelResponse:
    """A model's answer that calls tools: each a name and arguments."""
    named = ids or [f"call-{next(_CALL_IDS)}" for _ in made]
    return ModelResponse(
        role="assistant",
        content="",
        tool_calls=[
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for call_id, (name, arguments) in zip(named, made, strict=True)
        ],
    )


def delegates(*tasks: tuple[str, str]) -> ModelResponse:
    """A leader's answer that gives members tasks."""
    return calls(*(("delegate_task_to_member", {"member_id": member, "task": task}) for member, task in tasks))


def results_in(messages: list[Message]) -> list[str]:
    """What tools have returned, after the last thing that the user said."""
    last = max(number for number, message in enumerate(messages) if message.role == "user")
    return [str(message.content) for message in messages[last:] if message.role == "tool"]


def said(messages: list[Message]) -> list[str]:
    """What is said, without the system's."""
    return [f"{message.role}: {message.content}" for message in messages if message.role != "system"]


def told(messages: list[Message]) -> str:
    """What the system says."""
    return "\n".join(str(message.content) for message in messages if message.role == "system")


def a_team(model: Model | None = None, *members: Agent | Team, **fields: Any) -> Team:
    """A team, t1 as requests of tests name it; it calls nobody of Agno's."""
    made: dict[str, Any] = {"id": "t1", "model": model or Scripted(), "members": list(members), "telemetry": False}
    return Team(**made | fields)


def an_agent(model: Model | None = None, **fields: Any) -> Agent:
    """An agent."""
    made: dict[str, Any] = {"id": "a1", "name": "a1", "model": model or Scripted(), "telemetry": False}
    return Agent(**made | fields)
