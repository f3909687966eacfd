"""Passing messages on: requests found outside their partition to it, what is no request to the dead letters.

In order: one after the other, each confirmed before the next. What is buried is answered beside that: an answer goes
where its producer said, and that can take its time. Properties and headers are kept, but for those
that would make the broker route or refuse the copy differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pamqp import encode

from worker.cancellation import was_cancelled
from worker.errors import RequestRefused
from worker.intake.delivery import WITHOUT_MESSAGE_ID, Delivery
from worker.intake.topology import Topology
from worker.measures import UNMEASURED, Measures
from worker.replies.publisher import Publisher, Unroutable

PASSED_ON: Final = "x-teamturn-passed-on"
"""Set on what was passed on once. Found outside its partition again, the bindings are wrong, and passing it on
would go on for ever."""

OWN_HEADERS: Final = "x-teamturn-"
"""What the names of our own headers begin with."""
CODE_HEADER: Final = "x-teamturn-code"
REASON_HEADER: Final = "x-teamturn-reason"
QUEUE_HEADER: Final = "x-teamturn-queue"
TIME_HEADER: Final = "x-teamturn-time"
ATTEMPTS_HEADER: Final = "x-teamturn-attempts"
STEPS_HEADER: Final = "x-teamturn-steps"
TOKENS_HEADER: Final = "x-teamturn-tokens"

BROKERS_COUNTERS: Final = ("x-delivery-count", "x-acquired-count")
"""Headers by which RabbitMQ counts deliveries: another number at each look."""

_ROUTING_HEADERS: Final = frozenset({"CC", "BCC"})
"""RabbitMQ publishes a message to these keys as well; repeated at each hop, one request would become many."""

_MOST_HEADER_BYTES: Final = 65_536
"""All properties must fit into one frame, of 128 KiB as RabbitMQ is set up; past it the connection is closed."""

_UNROUTABLE_SECONDS: Final = 1.0

_MOST_ANSWERS: Final = 32
"""How many answers are under way at a time; with all of them taken, the next copy waits."""

_log = structlog.get_logger()


def copy_of(delivery: Delivery, extra_headers: dict[str, Any]) -> Message:
    """Return a persistent message with the same body and properties, and some headers more.

    Left out: `expiration` and priority (such a request is refused where it is seen), `user_id`, which the broker
    compares with the connection's own user, and headers that can't be sent again.
    """
    return copy_with(delivery.headers, extra_headers, delivery.message)


def copy_with(headers: dict[str, Any], extra_headers: dict[str, str], original: AbstractIncomingMessage) -> Message:
    """Return such a copy with other headers than the original's."""
    copy = Message(
        body=original.body,
        headers=sendable(headers) | extra_headers,
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        delivery_mode=DeliveryMode.PERSISTENT,
        correlation_id=original.correlation_id,
        reply_to=original.reply_to,
        message_id=original.message_id,
        timestamp=original.timestamp,
        type=original.type,
        app_id=original.app_id,
    )
    # None: aio-pika says 0, and RabbitMQ 4.3 has those overtaken that say nothing, in the same queue.
    copy.priority = None
    return copy


def _why(delivery: Delivery, refusal: RequestRefused) -> dict[str, Any]:
    why = {
        CODE_HEADER: refusal.code.value,
        REASON_HEADER: refusal.message,
        QUEUE_HEADER: delivery.source,
        TIME_HEADER: datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not delivery.message_id:
        why[WITHOUT_MESSAGE_ID] = "1"
    return why


def sendable(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that a copy can carry, in their order, as far as there is room."""
    kept: dict[str, Any] = {}
    room_bytes = _MOST_HEADER_BYTES
    for name, value in headers.items():
        if name in _ROUTING_HEADERS:
            continue
        try:
            size_bytes = len(encode.field_table({name: value}))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
        if size_bytes <= room_bytes:
            kept[name] = value
            room_bytes -= size_bytes
    return kept


Answer = Callable[[Delivery, RequestRefused], Awaitable[bool]]
"""Answer what was refused, if it names an address for it; False if its delivery died first."""


@dataclass(frozen=True, slots=True)
class _Forwarded:
    delivery: Delivery
    copy: Message
    exchange: str
    routing_key: str
    refusal: RequestRefused | None = None
    """Why it is buried; None: it is passed on."""


class Forwarder:
    """Publishes copies of deliveries elsewhere, in the order in which they are given to it, and acknowledges them.

    A delivery is acknowledged when its copy is confirmed and, where it was buried, its answer is given.
    """

    def __init__(
        self, publisher: Publisher, topology: Topology, answer: Answer, *, measures: Measures = UNMEASURED
    ) -> None:
        """`answer` is asked to answer what was buried."""
        self._measures = measures
        self._publisher = publisher
        self._topology = topology
        self._answer = answer
        self._waiting: asyncio.Queue[_Forwarded] = asyncio.Queue()

    def pass_on(self, delivery: Delivery, slot: str) -> None:
        """Publish a request to its slot."""
        copy = copy_of(delivery, {PASSED_ON: "1"})
        self._waiting.put_nowait(_Forwarded(delivery, copy, self._topology.requests, slot))

    async def keep_dead(self, delivery: Delivery, refusal: RequestRefused, headers: dict[str, Any]) -> None:
        """Publish a copy to the dead-letter queue, with headers beside those that say why; wait for its confirm.

        The delivery is acknowledged by whoever answers it; once it is dead, nothing is published.
        """
        _log.warning("request_dead_lettered", code=refusal.code.value, reason=refusal.message, queue=delivery.source)
        copy = copy_of(delivery, _why(delivery, refusal) | headers)
        await self._published(_Forwarded(delivery, copy, "", self._topology.dead, refusal))

    def bury(self, delivery: Delivery, refusal: RequestRefused) -> None:
        """Publish what can't be executed to the dead-letter queue, with headers that say why, and answer it."""
        _log.warning("request_dead_lettered", code=refusal.code.value, reason=refusal.message, queue=delivery.source)
        copy = copy_of(delivery, _why(delivery, refusal))
        self._waiting.put_nowait(_Forwarded(delivery, copy, "", self._topology.dead, refusal))

    async def run(self) -> None:
        """Publish what is given, until the task is cancelled; answers that are under way then are given up."""
        places = asyncio.Semaphore(_MOST_ANSWERS)
        async with asyncio.TaskGroup() as answers:
            while True:
                forwarded = await self._waiting.get()
                with _failing_alone(forwarded.delivery):
                    if await self._published(forwarded):
                        await self._settle(forwarded, answers, places)
                if was_cancelled():
                    raise asyncio.CancelledError

    async def _settle(self, forwarded: _Forwarded, answers: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
        if forwarded.refusal is None:
            await forwarded.delivery.ack()
        else:
            await places.acquire()
            answers.create_task(self._answer_refusal(forwarded.delivery, forwarded.refusal, places))

    async def _answer_refusal(self, delivery: Delivery, refusal: RequestRefused, places: asyncio.Semaphore) -> None:
        with _failing_alone(delivery):
            try:
                if await self._answer(delivery, refusal):
                    await delivery.ack()
            finally:
                places.release()

    async def _published(self, forwarded: _Forwarded) -> bool:
        while True:
            try:
                published = await self._publisher.publish(
                    forwarded.copy,
                    exchange=forwarded.exchange,
                    routing_key=forwarded.routing_key,
                    mandatory=True,
                    wanted=lambda: forwarded.delivery.alive,
                )
            except Unroutable:
                _log.error(
                    "queue_missing",
                    exchange=forwarded.exchange,
                    routing_key=forwarded.routing_key,
                    action="declaring it again",
                )
                self._publisher.doubt()
                await asyncio.sleep(_UNROUTABLE_SECONDS)
            else:
                if published and forwarded.refusal is not None:
                    self._measures.dead_lettered(forwarded.refusal.code)
                return published


@contextmanager
def _failing_alone(delivery: Delivery) -> Iterator[None]:
    """Have a delivery be delivered again whose block fails: it must not hold up all the others."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is, the others must go on
        _log.exception("message_not_passed_on", queue=delivery.source, consequence="it is delivered again")
        delivery.life.end()
