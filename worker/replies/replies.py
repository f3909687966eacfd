"""Publishing replies: to the request's reply_to where that is allowed, else to the results.

A reply's bytes and properties are the same each time that it is published. Its headers are not part of it: they name
the trace of the request that it answers this time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from aio_pika import DeliveryMode, Message

from schemas.errors import ErrorCode
from schemas.replies import REPLY_TYPE, RunReply
from schemas.requests import RunRequest
from worker.errors import RequestRefused
from worker.intake.delivery import Delivery
from worker.intake.forwarding import CODE_HEADER
from worker.intake.reading import known_ids
from worker.intake.topology import Topology
from worker.operations import tracing
from worker.replies.answers import body_of, rejected, shortened, unreadable
from worker.replies.direct import DIRECT, DirectReplies
from worker.replies.publisher import MessageTooLarge, Publisher, Unroutable

_SERVER_NAMED: Final = "amq.gen-"
_MOST_ADDRESSED_TRIES: Final = 3
_UNROUTABLE_SECONDS: Final = 1.0

_log = structlog.get_logger()


class ReplyAddresses:
    """Which queues a request may have its reply sent to: what its producer named must not reach our own queues."""

    def __init__(self, prefix: str, pattern: str) -> None:
        self._own = f"{prefix}."
        self._pattern = re.compile(pattern) if pattern else None

    def allowed(self, reply_to: str | None) -> bool:
        """Whether a reply may go there."""
        if not reply_to or reply_to.startswith(self._own):
            return False
        if reply_to.startswith((DIRECT, _SERVER_NAMED)):
            return True
        return self._pattern is not None and self._pattern.fullmatch(reply_to) is not None


class ReplyPublisher:
    """Publishes stored replies, with a publisher confirm."""

    def __init__(
        self,
        results: Publisher,
        addressed: Publisher,
        direct: DirectReplies,
        topology: Topology,
        addresses: ReplyAddresses,
        *,
        largest_bytes: int,
        schema: str,
    ) -> None:
        """`results` publishes to the results, the other two to what producers name in reply_to.

        What is larger than `largest_bytes` is not looked into. `schema` is where answers are stored.
        """
        self._schema = schema
        self._largest_bytes = largest_bytes
        self._results = results
        self._addressed = addressed
        self._direct = direct
        self._topology = topology
        self._addresses = addresses

    async def publish(self, body: bytes, request: RunRequest, delivery: Delivery) -> bool:
        """Publish the reply to a request; False if its delivery died first: who has it now replies.

        One that RabbitMQ is set to find too large is published without what is only stored then.
        """
        try:
            return await self._publish(body, request, delivery)
        except MessageTooLarge as error:
            _log.warning("reply_too_large", bytes=len(body), largest_bytes=error.largest_bytes)
            reply = RunReply.model_validate_json(body)
            shorter = shortened(reply, largest_bytes=error.largest_bytes, schema=self._schema)
            return await self._publish(body_of(shorter), request, delivery)

    async def _publish(self, body: bytes, request: RunRequest, delivery: Delivery) -> bool:
        message = _message(body, request.run_id, delivery)
        reply_to = delivery.message.reply_to
        if reply_to and self._addresses.allowed(reply_to):
            try:
                return await self._to_address(message, reply_to, delivery)
            except Unroutable:
                _log.info("reply_to_gone", reply_to=reply_to, consequence="the reply goes to the results")
        elif reply_to:
            _log.warning("reply_to_forbidden", reply_to=reply_to[:255], consequence="the reply goes to the results")
            message.headers = {CODE_HEADER: ErrorCode.REPLY_TO_FORBIDDEN.value}
        return await self._to_results(message, request, delivery)

    async def answer_refused(self, delivery: Delivery, refusal: RequestRefused) -> bool:
        """Answer what went to the dead letters; False if its delivery died first.

        What is not even a request is answered only where its reply_to says.
        """
        with delivery.processing():
            tracing.failed(refusal.code.value)
            return await self._answer_refused(delivery, refusal)

    async def _answer_refused(self, delivery: Delivery, refusal: RequestRefused) -> bool:
        now = delivery.published or 0.0  # from the message, so that a redelivery is answered with the same bytes
        if refusal.request is not None:
            reply = rejected(refusal.request, refusal.code, refusal.message, now=now)
            return await self.publish(body_of(reply), refusal.request, delivery)
        reply_to = delivery.message.reply_to
        if not reply_to or not self._addresses.allowed(reply_to):
            return delivery.alive
        known = known_ids(delivery.message.body, delivery.message_id, largest_bytes=self._largest_bytes)
        body = body_of(unreadable(known, refusal.code, refusal.message, now=now))
        try:
            return await self._to_address(_message(body, known.get("run_id"), delivery), reply_to, delivery)
        except Unroutable:
            _log.info("reply_to_gone", reply_to=reply_to, consequence="it is only in the dead letters")
            return delivery.alive

    async def _to_address(self, message: Message, reply_to: str, delivery: Delivery) -> bool:
        """Publish a reply where its request says. Raises Unroutable if nobody is there."""
        with _sending(message, delivery, exchange="", routing_key=reply_to):
            if reply_to.startswith(DIRECT):
                return await self._direct.publish(message, reply_to, wanted=lambda: delivery.alive)
            return await self._addressed.publish(
                message,
                exchange="",
                routing_key=reply_to,
                mandatory=True,
                wanted=lambda: delivery.alive,
                most_tries=_MOST_ADDRESSED_TRIES,
            )

    async def _to_results(self, message: Message, request: RunRequest, delivery: Delivery) -> bool:
        # A routing key has 255 bytes, of which the kind takes a few: the id is cut, never the message.
        routing_key = str(request.target).encode()[:255].decode(errors="ignore")
        with _sending(message, delivery, exchange=self._topology.results, routing_key=routing_key):
            while True:
                try:
                    return await self._results.publish(
                        message,
                        exchange=self._topology.results,
                        routing_key=routing_key,
                        mandatory=True,
                        wanted=lambda: delivery.alive,
                    )
                except Unroutable:
                    _log.error("results_queue_missing", queue=self._topology.results, action="declaring it again")
                    self._results.doubt()
                    await asyncio.sleep(_UNROUTABLE_SECONDS)


@contextmanager
def _sending(message: Message, delivery: Delivery, *, exchange: str, routing_key: str) -> Iterator[None]:
    """Trace the publishing of a reply, whose headers name that trace."""
    sending = tracing.sending(
        message.headers,
        exchange=exchange,
        routing_key=routing_key,
        message_id=message.message_id,
        body_bytes=message.body_size,
    )
    with sending:
        yield
        if not delivery.alive:
            tracing.note({"teamturn.given_away": True})  # who has the delivery now replies


def _message(body: bytes, run_id: str | None, delivery: Delivery) -> Message:
    return Message(
        body=body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=run_id,
        correlation_id=delivery.message.correlation_id or run_id,
        type=REPLY_TYPE,
    )
