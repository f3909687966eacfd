"""Ids as producers may choose them, and the kinds of target that a request can name."""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr
from typing_extensions import override

MAX_ID_BYTES: Final = 255
"""The AMQP limit of a routing key and a message_id; past it the client raises, after the commit."""


class SessionType(StrEnum):
    """What a session belongs to. Lower case: Agno reads any other spelling as an agent's session."""

    TEAM = "team"
    AGENT = "agent"
    WORKFLOW = "workflow"


def _checked(value: str) -> str:
    if 0 < len(value) <= MAX_ID_BYTES and value.isascii() and value.isprintable():
        return value  # what nearly all are
    size_bytes = len(value.encode("utf-8", errors="surrogatepass"))
    if not 1 <= size_bytes <= MAX_ID_BYTES:
        raise ValueError(f"an id is 1 to {MAX_ID_BYTES} bytes of UTF-8, not {size_bytes}")
    # Cc: control characters. Cs: lone surrogates, which UTF-8 can't carry.
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
        raise ValueError("an id has no control characters")
    return value


Id = Annotated[
    StrictStr,
    AfterValidator(_checked),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES}),
]
"""1 to 255 bytes of UTF-8 without control characters."""


class Target(BaseModel):
    """What a request is for: one team, agent or workflow."""

    model_config = ConfigDict(frozen=True)

    type: SessionType
    id: Id

    @override
    def __str__(self) -> str:
        """Return the routing key of its replies: `team.<id>`, `agent.<id>` or `workflow.<id>`."""
        return f"{self.type.value}.{self.id}"
