"""Producers that number the requests of each session, and go on publishing, whatever becomes of the queues."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError

from schemas.requests import RunRequest
from tests.support.broker import slot
from tests.support.waiting import eventually
from worker.client import RunClient
from worker.settings import Settings


class Numbered:
    """Sessions whose requests are published one after the other, each when the one before is confirmed, until `stop`.

    Half of the sessions publish by RunClient; the others as a program of the contract alone does, which publishes
    again what is refused.
    """

    def __init__(self, settings: Settings, sessions: Iterable[str], *, pause_seconds: float = 0.0) -> None:
        self._settings = settings
        self._pause_seconds = pause_seconds
        self._stopping = False
        self.published: dict[str, list[str]] = {session_id: [] for session_id in sessions}
        """The run ids of each session, in the order in which they were confirmed."""
        self.refused = 0
        """How often RabbitMQ refused a publish of the contract's programs (basic.nack)."""

    async def __aenter__(self) -> Self:
        url = self._settings.amqp_url.get_secret_value()
        self._connection = await aio_pika.connect(url)
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = await channel.get_exchange(f"{self._settings.prefix}.requests", ensure=False)
        self._client = await RunClient(url, prefix=self._settings.prefix, max_unanswered=1_000_000).__aenter__()
        self._tasks = [
            asyncio.create_task(self._go_on(session_id, (self._raw, self._submit)[number % 2]))
            for number, session_id in enumerate(self.published)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.__aexit__(None, None, None)
        await self._connection.close()

    @property
    def total(self) -> int:
        return sum(map(len, self.published.values()))

    async def flow(self, number: int = 1) -> None:
        """Wait until each session has published so many more."""
        before = {session_id: len(run_ids) for session_id, run_ids in self.published.items()}
        await eventually(
            lambda: all(len(self.published[session_id]) >= had + number for session_id, had in before.items())
        )

    async def stop(self) -> None:
        """Publish nothing more, once each session's last request is confirmed."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _go_on(self, session_id: str, publish: Any) -> None:
        for number in count():
            if self._stopping:
                return
            run_id = f"{session_id}/{number:05}"
            await publish(RunRequest(run_id=run_id, session_id=session_id, team_id="echo", input=str(number)))
            self.published[session_id].append(run_id)
            await asyncio.sleep(self._pause_seconds)

    async def _submit(self, request: RunRequest) -> None:
        await self._client.submit(request, to_results=True)

    async def _raw(self, request: RunRequest) -> None:
        body = request.model_dump_json(exclude_defaults=True).encode()
        while True:
            try:
                # Without a message_id: nothing of it may be taken for the run_id on the way.
                await self._exchange.publish(
                    aio_pika.Message(body, content_type="application/json", delivery_mode=2, headers={"n": 1}),
                    slot(request.session_id),
                    mandatory=True,
                )
            except DeliveryError:
                self.refused += 1
                await asyncio.sleep(0.01)
            else:
                return


async def first_of_each(settings: Settings, queues: Sequence[str]) -> dict[str, list[str]]:
    """Take everything out of some queues; return each session's run ids in the order in which they first come."""
    runs: dict[str, dict[str, None]] = defaultdict(dict)
    homes: dict[str, set[str]] = defaultdict(set)
    for queue in queues:
        for message in await taken(settings, queue):
            body: Mapping[str, str] = json.loads(message.body)
            runs[body["session_id"]].setdefault(body["run_id"])
            homes[body["session_id"]].add(queue)
    assert all(len(found) == 1 for found in homes.values()), "a session is in two queues"
    return {session_id: list(run_ids) for session_id, run_ids in runs.items()}


async def taken(settings: Settings, name: str) -> list[AbstractIncomingMessage]:
    """Take everything out of a queue, in order."""
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        wanted = queue.declaration_result.message_count or 0
        messages: list[AbstractIncomingMessage] = []

        async def received(message: AbstractIncomingMessage) -> None:
            messages.append(message)
            await message.ack()  # RabbitMQ delivers 2,000 without

        await queue.consume(received)
        await eventually(lambda: len(messages) >= wanted)
        with suppress(Exception):
            await channel.close()
    return messages
