"""What people and programs see of dead letters, and of what was done with them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field, JsonValue

from schemas.ids import SessionType


class DeadLetter(BaseModel):
    """A message in the dead-letter queue."""

    id: str
    """What the commands name it by: its run_id, or the beginning of its body's sha256. Copies have the same."""
    time: datetime | None
    """When it was buried, as far as it says so."""
    code: str | None
    """Why: an error code, or the reason for which RabbitMQ itself buried it (expired, delivery_limit, …)."""
    reason: str | None
    """The same as a sentence."""
    queue: str | None
    """The queue that it was in before."""
    run_id: str | None
    session_id: str | None
    user_id: str | None
    target_type: SessionType | None
    target_id: str | None
    size_bytes: int
    """Of its body."""
    attempts: int | None
    """How often it was started, where that is why it is here."""
    steps: int | None
    """How many steps these recorded."""
    tokens: int | None
    """How many tokens these used."""


class DeadLetterContent(DeadLetter):
    """All of a message in the dead-letter queue."""

    headers: dict[str, JsonValue]
    """What JSON does not have is text there."""
    properties: dict[str, JsonValue]
    """The AMQP properties that are set."""
    body: str
    """Its body: text, or base64 of what is not UTF-8."""
    body_encoding: str
    """utf-8 or base64."""


class DeadLetterDone(BaseModel):
    """What was done with a dead letter, or would be."""

    id: str
    action: str
    """replayed, dropped, or skipped: it is left where it is."""
    detail: str | None
    """How, or why not."""
    dry_run: bool
    """Nothing was done; this is what would be."""


class DeadLetterHeaders(BaseModel):
    """The headers that a worker adds to what it puts into the dead-letter queue, beside those that it came with.

    What RabbitMQ itself buried has its `x-death` instead.
    """

    code: str = Field(alias="x-teamturn-code")
    """Why: an error code."""
    reason: str = Field(alias="x-teamturn-reason")
    """The same as a sentence."""
    queue: str = Field(alias="x-teamturn-queue")
    """The queue that it was in."""
    time: datetime = Field(alias="x-teamturn-time")
    """When it was buried: RFC 3339."""
    attempts: int | None = Field(None, alias="x-teamturn-attempts")
    """How often it was started, where that is why it is here."""
    steps: int | None = Field(None, alias="x-teamturn-steps")
    """How many steps these recorded."""
    tokens: int | None = Field(None, alias="x-teamturn-tokens")
    """How many tokens these used."""
    without_message_id: str | None = Field(None, alias="x-teamturn-without-message-id")
    """Set where it came without a message_id: the one that it has was made up for it."""
