"""Events on `{prefix}.events`: published as they happen, kept by nobody, waited for by nobody.

They are not confirmed, and not persistent. A connection of their own, and a buffer that drops what does not fit:
whoever consumes slowly, or not at all, costs a turn nothing. The events' numbers tell a consumer that some are missing.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from aio_pika import DeliveryMode, Message
from pydantic import SecretStr
from pydantic_core import to_json

from schemas.events import EVENT_TYPE, event_key
from schemas.requests import RunRequest
from worker.broker import BrokerConnection, close_quietly, connect, strays_told
from worker.errors import BrokerUnavailable, StartupError
from worker.executors.json_values import cleaned_json
from worker.intake.topology import Topology

MOST_WAITING: Final = 10_000
MOST_BYTES: Final = 32 * 2**20
LARGEST_EVENT_BYTES: Final = 1 * 2**20
"""A larger one is dropped; the last one of a run is sent without the reply's content then."""
_RETRY_SECONDS: Final = 1.0

_log = structlog.get_logger()


class EventPublisher:
    """Publishes the events of watched runs, as long as there is room for them."""

    def __init__(self, url: SecretStr, topology: Topology, *, name: str) -> None:
        self._url = url
        self._exchange = topology.events
        self._name = name
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(MOST_WAITING)
        self._next: tuple[str, bytes] | None = None
        """What was taken from there, and is not published yet."""
        self._bytes = 0
        self._dropped = 0

    def publish(self, request: RunRequest, event: dict[str, Any]) -> None:
        """Have an event of a run published. It doesn't wait, and never fails."""
        target = request.target
        address = {
            "run_id": request.run_id,
            "session_id": request.session_id,
            "session_type": target.type.value,
            "target_id": target.id,
        }
        try:
            body = to_json(cleaned_json(address | event))
            if len(body) > LARGEST_EVENT_BYTES and (reply := event.get("reply")) is not None:
                without = {"reply": reply | {"content": None, "member_responses": []}}
                body = to_json(cleaned_json(address | event | without))
        except Exception as error:  # noqa: BLE001 - users' code tells events, too
            _log.warning("event_dropped", reason=type(error).__name__)
            return
        if len(body) > LARGEST_EVENT_BYTES or self._bytes + len(body) > MOST_BYTES or self._waiting.full():
            self._dropped += 1
            if self._dropped % MOST_WAITING == 1:
                _log.warning("events_dropped", so_far=self._dropped)
            return
        self._bytes += len(body)
        self._waiting.put_nowait((event_key(target, request.session_id, request.run_id), body))

    async def run(self) -> None:
        """Publish, over a connection that is made when there is something, until the task is cancelled."""
        while True:
            await self._has_next()
            try:
                connection = await connect(self._url, name=self._name)
            except (BrokerUnavailable, StartupError):
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                with strays_told():
                    await self._publish_over(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, no turn may suffer for an event
                _log.info("events_interrupted", reason=type(error).__name__)
            finally:
                await connection.close()

    async def _publish_over(self, connection: BrokerConnection) -> None:
        channel = connection.amqp.channel(publisher_confirms=False)
        try:
            await channel.initialize()
            exchange = await channel.get_exchange(self._exchange, ensure=False)
            while True:
                key, body = await self._has_next()
                if connection.lost.is_set():
                    return  # for the next connection
                self._next = None
                message = Message(
                    body, content_type="application/json", delivery_mode=DeliveryMode.NOT_PERSISTENT, type=EVENT_TYPE
                )
                await exchange.publish(message, key, mandatory=False)
        finally:
            await close_quietly(channel)

    async def _has_next(self) -> tuple[str, bytes]:
        if self._next is None:
            self._next = await self._waiting.get()
            self._bytes -= len(self._next[1])
        return self._next
