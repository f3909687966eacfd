"""What the model sees of a session: past runs as messages, and the input as prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic_ai import BinaryContent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserContent,
    UserPromptPart,
)

from schemas.requests import Input
from schemas.requests import TextPart as InputText
from worker.executors.turn import PastRun

Prompt = str | Sequence[UserContent]


def history_messages(runs: Iterable[PastRun]) -> list[ModelMessage]:
    """Return past runs as what was asked and what was answered; members' work is not among it."""
    messages: list[ModelMessage] = []
    for run in runs:
        answer = run.content_text
        # Providers refuse empty messages; a run without either side says nothing.
        if (run.input or run.parts) and answer:
            messages.append(ModelRequest(parts=[UserPromptPart(content=prompt(run.parts or run.input))]))
            messages.append(ModelResponse(parts=[TextPart(content=answer)]))
    return messages


def prompt(given: Input) -> Prompt:
    """Return the request's input as the model is given it."""
    if isinstance(given, str):
        return given
    return [
        part.text if isinstance(part, InputText) else BinaryContent(data=part.data, media_type=part.media_type)
        for part in given
    ]


def with_text(given: Input, text: str) -> Prompt:
    """Return the input with a text after it."""
    asked = prompt(given)
    return f"{asked}\n\n{text}" if isinstance(asked, str) else [*asked, text]
