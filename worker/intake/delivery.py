"""A delivery: one message, on the one channel on which it can be acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage
from opentelemetry.trace import Span

from schemas.requests import RunRequest
from worker.broker import BROKER_ERRORS
from worker.operations import tracing

WITHOUT_MESSAGE_ID: Final = "x-teamturn-without-message-id"
"""Header of what came without a message_id: the client makes one up for a copy, and a message_id can be the run_id."""


def message_id_of(message: AbstractIncomingMessage) -> str | None:
    """Return the message_id that a message's producer gave it."""
    return None if WITHOUT_MESSAGE_ID in (message.headers or {}) else message.message_id


class ChannelLife:
    """Whether a channel's deliveries can still be acknowledged. It ends once, before the channel is closed."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._held: dict[int, float] = {}

    @property
    def held_seconds(self) -> float:
        """How long the oldest of its deliveries has not been acknowledged."""
        oldest = next(iter(self._held.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def hold(self, delivery: Delivery) -> None:
        """Say that a delivery is to be acknowledged on it."""
        self._held[id(delivery)] = time.monotonic()

    def let_go(self, delivery: Delivery) -> None:
        """Say that a delivery is acknowledged."""
        self._held.pop(id(delivery), None)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.is_set()

    def end(self) -> None:
        """Say that the broker takes, or has taken, everything unacknowledged back; the channel is closed for it."""
        self.ended.set()


@dataclass(slots=True)
class Delivery:
    """A message that was delivered and is not acknowledged yet."""

    message: AbstractIncomingMessage
    source: str
    """The queue it came from."""
    life: ChannelLife
    received: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.life.hold(self)

    @property
    def alive(self) -> bool:
        """Whether it is still ours to answer: once its channel is closed, it is somebody else's."""
        return self.life.alive

    @property
    def redelivered(self) -> bool:
        """Whether somebody had it before, and may have started it."""
        return bool(self.message.redelivered)

    @property
    def headers(self) -> dict[str, Any]:
        """The AMQP headers; never None."""
        return dict(self.message.headers or {})

    @property
    def message_id(self) -> str | None:
        """The message_id that its producer gave it."""
        return message_id_of(self.message)

    @property
    def published(self) -> float | None:
        """When it was published, as the producer says (AMQP `timestamp`, whole seconds); unix, or None."""
        stamp = self.message.timestamp
        return None if stamp is None else stamp.timestamp()

    @property
    def queued_since(self) -> float:
        """When it was published, at the latest; unix seconds.

        AMQP's `timestamp` has whole seconds: the end of that second is when it had been published. Without one it
        is when it was received.
        """
        return self.received if self.published is None else min(self.published + 1, self.received)

    async def ack(self) -> None:
        """Acknowledge it. On a channel that is gone this does nothing: the broker delivers it again."""
        if not self.alive:
            return
        try:
            await self.message.ack()
        except BROKER_ERRORS:
            self.life.end()
        else:
            self.life.let_go(self)

    def processing(self) -> AbstractContextManager[Span]:
        """Open the span of its processing for the block, in the trace that its headers name; see operations.tracing."""
        message = self.message
        return tracing.processing(
            message.headers or {},
            queue=self.source,
            exchange=message.exchange,
            routing_key=message.routing_key,
            received=self.received,
            attributes=lambda: {
                "messaging.message.id": message.message_id or "",
                "messaging.message.conversation_id": message.correlation_id or "",
                "messaging.message.body.size": len(message.body),
                "messaging.rabbitmq.message.delivery_tag": message.delivery_tag or 0,
                "teamturn.redelivered": self.redelivered,
                # By the producer's clock, and in whole seconds: it can be none.
                "teamturn.queue.duration": round(self.received - self.queued_since, 3),
            },
        )

    def forbidden_property(self) -> str | None:
        """Return the name of an AMQP property by which the broker would drop or reorder the request unseen."""
        if self.message.expiration is not None:
            return "expiration"
        return "priority" if self.message.priority else None


@dataclass(slots=True)
class RequestDelivery:
    """A delivery that holds a run request, in its own partition."""

    delivery: Delivery
    request: RunRequest
    outdated: int = 0
    """How many of its claims were outdated when they were to be committed."""
    outlived: int = 0
    """How many of its attempts ended here without a recorded step, though the worker lives; to be uncounted."""
    busy: bool = False
    """Whether its session was busy when it came: an earlier request of it, another one, was here and not finished."""
    judged: asyncio.Task[None] | None = None
    """What looks, beside the session's turns, whether it can be answered for that at once."""
    settled: bool = False
    """Whether it was."""
    attempts: int = 0
    """How often its turn was started here: a claim that is lost then and taken again is another attempt."""
    mailbox: Collection[RequestDelivery] = field(default=(), repr=False)
    """Its session's requests here, in order: the one that is being taken first."""

    @property
    def alive(self) -> bool:
        """Whether it is still ours to answer."""
        return self.delivery.alive

    @property
    def behind(self) -> Iterable[RequestDelivery]:
        """While it is being taken: the requests that wait behind it."""
        return tuple(islice(self.mailbox, 1, None))
