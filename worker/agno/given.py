"""The request's parts as Agno takes them: its text, and media by their kind."""

from __future__ import annotations

from typing import Any, Final

from agno.media import Audio, File, Image, Video
from pydantic import ValidationError

from schemas.requests import BinaryPart
from worker.errors import ModelFailed
from worker.executors.turn import Turn

_KINDS: Final = {"image": ("images", Image), "audio": ("audio", Audio), "video": ("videos", Video)}


def given_input(turn: Turn) -> dict[str, Any]:
    """Return the binary parts of a turn's input as arguments of `arun`. Raises ModelFailed for what Agno can't take."""
    media: dict[str, list[Any]] = {}
    parts = [] if isinstance(turn.parts, str) else [part for part in turn.parts if isinstance(part, BinaryPart)]
    for number, part in enumerate(parts):
        name, kind = _KINDS.get(part.media_type.partition("/")[0], ("files", File))
        # An id of Agno's own would be another in each attempt.
        given = {"id": f"{turn.run_id}-{number}", "content": part.data, "mime_type": part.media_type}
        try:
            media.setdefault(name, []).append(kind(**given))
        except ValidationError as error:
            raise ModelFailed(f"Agno can't be given a part of type {part.media_type}", retryable=False) from error
    return media
