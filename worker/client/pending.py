"""One request of a client: what it is published as, and what came of it."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime

from aio_pika import DeliveryMode, Message
from pydantic import ValidationError

from schemas.replies import RunReply
from schemas.requests import RunRequest
from worker.client.link import DIRECT_REPLY_TO
from worker.client.watch import Watch
from worker.errors import ReplyUnreadable


class PendingRun:
    """A request that has no reply yet."""

    def __init__(self, request: RunRequest, watch: Watch | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.watch = watch
        self.correlation_id = uuid.uuid4().hex
        self.published: asyncio.Future[None] = loop.create_future()
        """Done when RabbitMQ has confirmed it, or answered."""
        self.reply: asyncio.Future[RunReply] = loop.create_future()
        self.reply_bytes = 0

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a reply."""
        return self.reply.done() and (self.reply.cancelled() or self.reply.exception() is not None)

    def message(self) -> Message:
        """Return what is published, each time that it is."""
        return message_of(self.request, correlation_id=self.correlation_id, reply_to=DIRECT_REPLY_TO)

    def confirmed(self) -> None:
        """Note that RabbitMQ has it."""
        if not self.published.done():
            self.published.set_result(None)

    def answered(self, body: bytes) -> None:
        """Take the reply; of several, the first."""
        if self.reply.done():
            return
        try:
            reply = RunReply.model_validate_json(body)
        except ValidationError as error:
            self.failed(ReplyUnreadable(f"the reply is none of this version's ({error.error_count()} mistakes)"))
        else:
            self.confirmed()  # which can come after the reply
            self.reply_bytes = len(body)
            self.reply.set_result(reply)

    def failed(self, error: Exception) -> None:
        """End whatever waits for it with an error."""
        for future in (self.published, self.reply):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody need be waiting for it


def message_of(request: RunRequest, *, correlation_id: str | None = None, reply_to: str | None = None) -> Message:
    """Return a request as a message."""
    message = Message(
        body=request.model_dump_json(exclude_defaults=True).encode(),
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=request.run_id,
        correlation_id=correlation_id,
        reply_to=reply_to,
        timestamp=datetime.now(UTC),
    )
    # aio-pika says 0 where none is given, and RabbitMQ 4.3 has those overtaken that say nothing, in the same queue.
    message.priority = None
    return message
