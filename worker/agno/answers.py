"""A model's answer as JSON, and back: as the journal records it."""

from __future__ import annotations

from typing import Any, Final
from uuid import NAMESPACE_OID, uuid5

from agno.media import Audio
from agno.metrics import MessageMetrics
from agno.models.message import Citations
from agno.models.response import ModelResponse, ToolExecution
from agno.utils.media import (
    reconstruct_audio_list,
    reconstruct_files,
    reconstruct_images,
    reconstruct_response_audio,
    reconstruct_videos,
)
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticSerializationError

from worker.executors.json_values import MAX_LEVELS, clean

_PLAIN: Final = (
    *("role", "content", "tool_calls", "event", "provider_data", "extra", "created_at", "updated_session_state"),
    *("redacted_reasoning_content", "reasoning_content", "compression_stats", "input_tokens", "output_tokens"),
    *("total_tokens", "time_to_first_token", "reasoning_tokens", "cache_read_tokens", "cache_write_tokens"),
)
MEDIA: Final = {
    "images": reconstruct_images,
    "videos": reconstruct_videos,
    "audios": reconstruct_audio_list,
    "files": reconstruct_files,
}


class Unrecordable(Exception):
    """What can't be told in JSON, and so not be given again."""


def name_calls(answer: Any, key: str) -> None:
    """Give each tool call without an id one that is made of the answer's key, the same in every attempt.

    Agno would make it up, after the answer is recorded: a later attempt's call would be another one.
    """
    calls = enumerate(answer.tool_calls or ())
    answer.tool_calls = [call if call.get("id") else {**call, "id": _id_of(key, place)} for place, call in calls]


def _id_of(key: str, place: int) -> str:
    return str(uuid5(NAMESPACE_OID, f"{key} {place}"))


def recorded_answer(answer: Any) -> JsonValue:
    """Return an answer as JSON. Raises Unrecordable."""
    told: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(answer, name)) is not None}
    for name in MEDIA:
        told |= {name: media_as_json(media)} if (media := getattr(answer, name)) is not None else {}
    if isinstance(answer.audio, Audio):
        told["audio"] = answer.audio.to_dict()
    if isinstance(answer.parsed, BaseModel):
        told["parsed"] = answer.parsed.model_dump(mode="json", by_alias=False)
    if answer.citations is not None:
        told["citations"] = answer.citations.model_dump(exclude_none=True)
    if answer.response_usage is not None:
        told["response_usage"] = answer.response_usage.to_dict()
    if answer.tool_executions:
        told["tool_executions"] = [execution.to_dict() for execution in answer.tool_executions]
    return as_recorded(told)


def answer_of(recorded: Any, response_format: object = None) -> Any:
    """Return the answer that was recorded; `response_format` is what it was asked for in."""
    told = dict(recorded)
    answer = ModelResponse(**{name: told[name] for name in _PLAIN if name in told})
    for name, reconstructed in MEDIA.items():
        if name in told:
            setattr(answer, name, reconstructed(told[name]))
    if "audio" in told:
        answer.audio = reconstruct_response_audio(told["audio"])
    if "parsed" in told and isinstance(response_format, type) and issubclass(response_format, BaseModel):
        answer.parsed = _parsed(response_format, told["parsed"])
    if "citations" in told:
        answer.citations = Citations.model_validate(told["citations"])
    if "response_usage" in told:
        answer.response_usage = MessageMetrics.from_dict(told["response_usage"])
    if "tool_executions" in told:
        answer.tool_executions = [ToolExecution.from_dict(execution) for execution in told["tool_executions"]]
    return answer


def _parsed(schema: type[BaseModel], told: Any) -> BaseModel | None:
    # It was told by the names of its fields, which need not be those that it is read by.
    try:
        return schema.model_validate(told, by_alias=False, by_name=True)
    except ValidationError:
        return None  # Agno reads the answer's content


def media_as_json(media: Any) -> list[Any]:
    """Return media as JSON, their bytes in base64."""
    return [one.to_dict() for one in media]


def as_recorded(told: Any) -> JsonValue:
    """Return a value as JSON. Raises Unrecordable."""
    try:
        return clean(told, levels=MAX_LEVELS, most=None)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise Unrecordable(f"{type(error).__name__} while it was told in JSON") from error
