"""Publishing replies: to the request's reply_to where that is allowed, else to the results."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import structlog
from aio_pika import DeliveryMode, Message

from schemas.replies import REPLY_TYPE
from schemas.requests import RunRequest
from worker.intake.delivery import Delivery
from worker.intake.topology import Topology
from worker.replies.publisher import Publisher, Unroutable

_DIRECT: Final = "amq.rabbitmq.reply-to."
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
        if reply_to.startswith((_DIRECT, _SERVER_NAMED)):
            return True
        return self._pattern is not None and self._pattern.fullmatch(reply_to) is not None


class ReplyPublisher:
    """Publishes stored replies, with a publisher confirm."""

    def __init__(self, results: Publisher, addressed: Publisher, topology: Topology, addresses: ReplyAddresses) -> None:
        """`addressed` publishes to what producers name in reply_to, `results` to the results."""
        self._results = results
        self._addressed = addressed
        self._topology = topology
        self._addresses = addresses

    async def publish(self, body: bytes, request: RunRequest, delivery: Delivery) -> bool:
        """Publish the reply to a request; False if its delivery died first: who has it now replies."""
        message = Message(
            body=body,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=request.run_id,
            correlation_id=delivery.message.correlation_id or request.run_id,
            type=REPLY_TYPE,
        )
        reply_to = delivery.message.reply_to
        if reply_to and self._addresses.allowed(reply_to):
            try:
                return await self._addressed.publish(
                    message,
                    exchange="",
                    routing_key=reply_to,
                    # RabbitMQ returns a mandatory direct reply as unroutable even when its requester is there.
                    mandatory=not reply_to.startswith(_DIRECT),
                    wanted=lambda: delivery.alive,
                    # RabbitMQ 3.10 closes the connection for some made-up direct addresses.
                    most_tries=_MOST_ADDRESSED_TRIES,
                )
            except Unroutable:
                _log.info("reply_to_gone", reply_to=reply_to, consequence="the reply goes to the results")
        elif reply_to:
            _log.warning("reply_to_not_allowed", reply_to=reply_to[:255])
        return await self._to_results(message, request, delivery)

    async def _to_results(self, message: Message, request: RunRequest, delivery: Delivery) -> bool:
        while True:
            try:
                return await self._results.publish(
                    message,
                    exchange=self._topology.results,
                    # A routing key has 255 bytes, of which the kind takes a few: the id is cut, never the message.
                    routing_key=str(request.target).encode()[:255].decode(errors="ignore"),
                    mandatory=True,
                    wanted=lambda: delivery.alive,
                )
            except Unroutable:
                _log.error("results_queue_missing", queue=self._topology.results, action="declaring it again")
                self._results.doubt()
                await asyncio.sleep(_UNROUTABLE_SECONDS)
