"""What a model is asked, as a digest that is the same in each attempt of a turn."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from pydantic_core import to_json

_TIME_TOLD: Final = re.compile(r"The current time is [^\n]*")
"""Agno's own line in a system message: a later attempt tells another time, and asks the same."""
_SAID: Final = ("role", "content", "tool_calls", "tool_call_id")
_MEDIA: Final = ("images", "audio", "videos", "files")
_SOURCES: Final = ("url", "filepath", "mime_type", "format")


def digest_of(model: Any, asked: dict[str, Any]) -> bytes:
    """Return the digest of a request: of what is said, the tools, and the form asked for.

    Left out is what Agno makes up anew in each attempt: ids of messages and runs, times.
    """
    told = {
        "model": [type(model).__name__, model.id],
        "messages": [_message(message) for message in asked.get("messages") or ()],
        "tools": asked.get("tools"),
        "tool_choice": asked.get("tool_choice"),
        "response_format": asked.get("response_format"),
    }
    text = to_json(told, fallback=_named, inf_nan_mode="constants").decode("utf-8", "replace")
    run = asked.get("run_response")
    for made_up in (getattr(run, "run_id", None), getattr(run, "parent_run_id", None)):
        if made_up:
            text = text.replace(made_up, "")
    return hashlib.sha256(text.encode()).digest()


def _message(message: Any) -> dict[str, Any]:
    told = {name: getattr(message, name, None) for name in _SAID}
    if isinstance(told["content"], str):
        told["content"] = _TIME_TOLD.sub("", told["content"])
    for name in _MEDIA:
        if media := getattr(message, name, None):
            told[name] = [_source(one) for one in media]
    return told


def _source(media: Any) -> list[Any]:
    content = getattr(media, "content", None)
    text = content.encode() if isinstance(content, str) else content
    digest = hashlib.sha256(text).hexdigest() if isinstance(text, bytes) else None
    return [digest, *(str(getattr(media, name, None)) for name in _SOURCES)]


def _named(value: Any) -> str:
    return getattr(value, "__qualname__", None) or type(value).__qualname__
