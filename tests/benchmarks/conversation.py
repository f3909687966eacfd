"""How long a conversation waits: for a cancel, for an interrupt, and for the first piece of an answer.

Each beside the round trip of a request that waits for nothing, in turn, on the same worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any, Final, Self

import aio_pika
from aiormq.abc import DeliveredMessage

from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.lone import alternating
from tests.benchmarks.stage import Stage
from tests.benchmarks.traffic import Request, Traffic, request
from worker.settings import Settings

_STUCK_SECONDS: Final = 60
_LONE: Final = "a lone request"


class Events:
    """The events of every watched run, as they come."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first: dict[tuple[str, str], float] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect(self._settings.amqp_url.get_secret_value())
        channel = await (await self._connection.channel()).get_underlay_channel()
        queue = (await channel.queue_declare("", exclusive=True)).queue or ""
        await channel.queue_bind(queue, f"{self._settings.prefix}.events", "#")
        await channel.basic_consume(queue, self._received, no_ack=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def first(self, request: Request, type_: str) -> float:
        """Wait for a run's first event of a type, and return when it came, by the monotonic clock."""
        async with asyncio.timeout(_STUCK_SECONDS):
            while (request.run_id, type_) not in self._first:
                self._changed.clear()
                await self._changed.wait()
        return self._first[request.run_id, type_]

    async def _received(self, message: DeliveredMessage) -> None:
        at = time.monotonic()
        event = json.loads(message.body)
        self._first.setdefault((event["run_id"], event["type"]), at)
        self._changed.set()


class _Conversation:
    """What is measured, on one worker."""

    def __init__(self, traffic: Traffic, events: Events) -> None:
        self._traffic = traffic
        self._events = events

    async def lone(self, number: int) -> float:
        """A request that is answered at once."""
        return await self._traffic.lone(request("endless", f"lone-{number}", "answer"))

    async def cancel(self, number: int) -> float:
        """A cancel of a run that is under way."""
        running = await self._running(f"cancelled-{number}")
        start = time.monotonic()
        await self._traffic.cancel(running)
        return await self._answered(running, "CANCELLED") - start

    async def interrupt(self, number: int) -> float:
        """A request that interrupts a run that is under way, and is answered at once."""
        session_id = f"interrupted-{number}"
        running = await self._running(session_id)
        interrupting = request("endless", session_id, "answer", on_busy="interrupt")
        start = time.monotonic()
        await self._traffic.publish([interrupting])
        took = await self._answered(interrupting, "COMPLETED") - start
        await self._answered(running, "CANCELLED")
        return took

    async def unwatched(self, number: int) -> float:
        """A Team's reply."""
        return await self._traffic.lone(request("watched", f"unwatched-{number}", "hello"))

    async def watched(self, number: int) -> float:
        """The first piece of its answer."""
        asked = request("watched", f"watched-{number}", "hello", stream=True)
        start = time.monotonic()
        await self._traffic.publish([asked])
        first = await self._events.first(asked, "content_delta")
        await self._answered(asked, "COMPLETED")
        return first - start

    async def _running(self, session_id: str) -> Request:
        asked = request("endless", session_id, "", stream=True)
        await self._traffic.publish([asked])
        await self._events.first(asked, "run_started")
        return asked

    async def _answered(self, asked: Request, status: str) -> float:
        reply = await self._traffic.reply_to(asked)
        body: dict[str, Any] = json.loads(reply.body)
        if body["status"] != status:
            raise RuntimeError(f"a run should have been {status}: {reply.body.decode()}")
        return reply.at


async def cancel_latency(stage: Stage) -> list[Finding]:
    """Runs that wait for ever are cancelled once they have begun."""
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        Events(settings) as events,
        stage.worker(settings) as worker,
    ):
        await worker.consumes()
        conversation = _Conversation(traffic, events)
        ours, lone = await alternating(conversation.cancel, conversation.lone, requests=stage.plan.lone_requests)
    return [ratio("cancel_latency", Measured("cancel", "ms", ours), Measured(_LONE, "ms", lone))]


async def interrupt_latency(stage: Stage) -> list[Finding]:
    """Runs that wait for ever are interrupted by a request that is answered at once."""
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        Events(settings) as events,
        stage.worker(settings) as worker,
    ):
        await worker.consumes()
        conversation = _Conversation(traffic, events)
        ours, lone = await alternating(conversation.interrupt, conversation.lone, requests=stage.plan.lone_requests)
    return [ratio("interrupt_latency", Measured("interrupt", "ms", ours), Measured(_LONE, "ms", lone))]


async def stream_latency(stage: Stage) -> list[Finding]:
    """A Team whose model answers at once: what is measured is the way to the reader, and not the model."""
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        Events(settings) as events,
        stage.worker(settings, "tests.benchmarks.watched_team:watched") as worker,
    ):
        await worker.consumes()
        conversation = _Conversation(traffic, events)
        first, reply = await alternating(
            conversation.watched, conversation.unwatched, requests=stage.plan.lone_requests
        )
    return [ratio("stream_latency", Measured("first piece", "ms", first), Measured("unwatched reply", "ms", reply))]
