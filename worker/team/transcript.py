"""What was said in a run, in the roles and keys that Agno stores messages with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)

JsonObject = dict[str, Any]

_LONGEST_CHARACTERS: Final = 16_384
"""Of one message: what a tool returned may be a whole file, and each turn would store it again in its run."""


def transcript(messages: Iterable[ModelMessage]) -> list[JsonObject]:
    """Return messages as {role, content}, with the tool calls of a model and what they returned."""
    told: list[JsonObject] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            told.append(_answer(message))
        elif isinstance(message, ModelRequest):
            told += [entry for part in message.parts if (entry := _asked(part)) is not None]
    return told


def _answer(response: ModelResponse) -> JsonObject:
    texts = [part.content for part in response.parts if isinstance(part, TextPart)]
    calls = [
        {
            "id": part.tool_call_id,
            "type": "function",
            "function": {"name": part.tool_name, "arguments": _cut(part.args_as_json_str())},
        }
        for part in response.parts
        if isinstance(part, ToolCallPart)
    ]
    answer: JsonObject = {"role": "assistant", "content": _cut("\n".join(texts)) if texts else None}
    return answer | {"tool_calls": calls} if calls else answer


def _asked(part: ModelRequestPart) -> JsonObject | None:
    if isinstance(part, UserPromptPart):
        return {"role": "user", "content": _cut(_text(part.content))}
    if isinstance(part, ToolReturnPart):
        return {
            "role": "tool",
            "content": _cut(_returned(part)),
            "tool_call_id": part.tool_call_id,
            "tool_name": part.tool_name,
            "tool_call_error": part.outcome != "success",
        }
    # What pydantic-ai told the model itself, about output that did not validate, say: no user said it.
    return None


def _returned(part: ToolReturnPart) -> str:
    try:
        return part.model_response_str()
    except (ValueError, TypeError, RecursionError):
        return f"[{type(part.content).__name__}]"


def _text(content: str | Sequence[UserContent]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part if isinstance(part, str) else f"[{getattr(part, 'kind', 'file')}]" for part in content)


def _cut(text: str) -> str:
    left_out = len(text) - _LONGEST_CHARACTERS
    return text if left_out <= 0 else f"{text[:_LONGEST_CHARACTERS]} … ({left_out} characters more)"
