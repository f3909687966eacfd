"""A Team whose model, in the worker itself, writes its answer at once, in pieces where it is watched."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from teamturn import Team

_PIECES = ("The capital ", "of France ", "is Paris.")


async def _stream(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
    for piece in _PIECES:
        yield piece


def _whole(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=[TextPart("".join(_PIECES))])


watched = Team(id="watched", model=FunctionModel(_whole, stream_function=_stream, model_name="at once"))
