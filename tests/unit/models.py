"""Models that answer as they are told, in place of a provider's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from worker.executors.turn import Turn

Answer = Callable[[list[ModelMessage], AgentInfo], ModelResponse]


class Recorded:
    """A model that answers by a function and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[list[ModelMessage]] = []
        self.infos: list[AgentInfo] = []
        self._answer = answer

    @property
    def model(self) -> FunctionModel:
        async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            self.asked.append(list(messages))
            self.infos.append(info)
            await asyncio.sleep(0)  # a real one waits, too: others go on meanwhile
            return self._answer(messages, info)

        return FunctionModel(respond, model_name="told")


def text(content: str, *, tokens: tuple[int, int] = (10, 2)) -> ModelResponse:
    """A response with text, and so many input and output tokens."""
    return ModelResponse(parts=[TextPart(content)], usage=RequestUsage(input_tokens=tokens[0], output_tokens=tokens[1]))


def tasks(*given: tuple[str, str], ids: Sequence[str] = (), tokens: tuple[int, int] = (10, 2)) -> ModelResponse:
    """A response that gives members tasks: (member_id, task) each, by tool calls with these ids."""
    calls = [
        ToolCallPart("delegate_task", {"member_id": member, "task": task}, tool_call_id=ids[number])
        if ids
        else ToolCallPart("delegate_task", {"member_id": member, "task": task})
        for number, (member, task) in enumerate(given)
    ]
    return ModelResponse(parts=calls, usage=RequestUsage(input_tokens=tokens[0], output_tokens=tokens[1]))


def responses(*given: ModelResponse) -> Recorded:
    """A model that gives these responses, one a request of the run, and the last one for ever."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        return given[min(responses_so_far(messages), len(given) - 1)]

    return Recorded(answer)


def responses_so_far(messages: Sequence[ModelMessage]) -> int:
    """How often the model answered in this run; what the history says was answered in others."""
    count = 0
    for message in messages:
        if isinstance(message, ModelResponse):
            count += 1
        elif any(isinstance(part, UserPromptPart) for part in message.parts):
            count = 0
    return count


def failing(error: Exception) -> FunctionModel:
    """A model whose provider fails."""

    def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        raise error

    return FunctionModel(respond, model_name="told")


def echoing() -> FunctionModel:
    """A model that answers with the last prompt in brackets."""
    return Recorded(lambda messages, _: text(f"[{prompts(messages)[-1]}]")).model


def prompts(messages: Sequence[ModelMessage]) -> list[object]:
    """What a user said in some messages."""
    return [
        part.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]


def member(name: str, model: FunctionModel | None = None, *, description: str | None = None) -> Agent[Turn, str]:
    return Agent(model or echoing(), name=name, deps_type=Turn, description=description)


def says(content: str) -> FunctionModel:
    """A model that always says the same."""
    return responses(text(content)).model


def never_answering() -> FunctionModel:
    """A model that one waits for in vain."""

    async def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    return FunctionModel(respond, model_name="told")
