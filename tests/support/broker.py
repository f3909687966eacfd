"""A producer and consumer as another program would write them, from the contract alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tests.support.waiting import eventually

Json = dict[str, Any]


def slot(session_id: str) -> str:
    return hashlib.md5(session_id.encode()).hexdigest()[:2]


class TestBroker:
    """Publishes requests to one prefix and reads its queues."""

    __test__ = False

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.replies: list[AbstractIncomingMessage] = []
        self._consuming = False

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self.url)
        self.channel = await self.connection.channel(publisher_confirms=True, on_return_raises=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.connection.close()

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's own, (3, 10, 8) for instance."""
        assert self.connection.transport is not None
        found = self.connection.transport.connection.server_properties["version"]
        assert isinstance(found, bytes | str)
        text = found.decode() if isinstance(found, bytes) else found
        return tuple(int(number) for number in text.partition("-")[0].split("."))

    async def publish(
        self,
        body: Json | bytes,
        *,
        routing_key: str | None = None,
        exchange: str | None = None,
        **properties: Any,
    ) -> None:
        """Publish a request, to its slot unless a routing key is given."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        if routing_key is None:
            assert isinstance(body, dict)
            routing_key = slot(body.get("session_id") or body["run_id"])
        properties.setdefault("content_type", "application/json")
        properties.setdefault("delivery_mode", 2)
        target = await self.channel.get_exchange(exchange or f"{self.prefix}.requests", ensure=False)
        await target.publish(aio_pika.Message(raw, **properties), routing_key)

    async def ask(self, session_id: str, text: str = "hello", *, team_id: str = "echo", **fields: Any) -> str:
        """Publish a request and return its run_id."""
        run_id = fields.pop("run_id", None) or str(uuid.uuid4())
        await self.publish({"run_id": run_id, "session_id": session_id, "team_id": team_id, "input": text, **fields})
        return run_id

    async def consume_results(self) -> None:
        """Collect every reply of the results queue in `replies`."""
        if self._consuming:
            return
        self._consuming = True
        queue = await self.channel.get_queue(f"{self.prefix}.results", ensure=False)

        async def received(message: AbstractIncomingMessage) -> None:
            self.replies.append(message)
            await message.ack()

        await queue.consume(received)

    async def reply(self, run_id: str, *, seconds: float = 20) -> Json:
        """Wait for the reply of a run on the results queue."""
        message = await self.reply_message(run_id, seconds=seconds)
        return dict(json.loads(message.body))

    async def reply_message(self, run_id: str, *, seconds: float = 20) -> AbstractIncomingMessage:
        await self.consume_results()
        await eventually(lambda: any(one.message_id == run_id for one in self.replies), seconds=seconds)
        return next(one for one in self.replies if one.message_id == run_id)

    async def replies_of(self, run_ids: list[str], *, seconds: float = 60) -> None:
        """Wait until each run has a reply."""
        await self.consume_results()
        await eventually(lambda: set(run_ids) <= {one.message_id for one in self.replies}, seconds=seconds)

    async def dead_letter(self, *, seconds: float = 20) -> AbstractIncomingMessage:
        """Take one message from the dead-letter queue."""
        queue = await self.channel.get_queue(f"{self.prefix}.dead", ensure=False)
        async with asyncio.timeout(seconds):
            while True:
                message = await queue.get(fail=False)
                if message is not None:
                    await message.ack()
                    return message
                await asyncio.sleep(0.05)

    async def depth(self, queue: str) -> int:
        """How many messages of a queue are ready."""
        channel = await self.connection.channel()
        try:
            declared = await channel.declare_queue(f"{self.prefix}.{queue}", passive=True)
            return declared.declaration_result.message_count or 0
        finally:
            await channel.close()

    async def delete_everything(self, partitions: int) -> None:
        """Delete the prefix's queues and exchanges: quorum queues cost the node memory."""
        names = [f"requests.{number}" for number in range(partitions)]
        for name in [*names, "unrouted", "results", "control", "dead"]:
            await self.channel.queue_delete(f"{self.prefix}.{name}")
        for name in ["requests", "unrouted", "results", "events", "control"]:
            await self.channel.exchange_delete(f"{self.prefix}.{name}")


Condition = Callable[[], bool]
