"""Requests that are published ahead of time, and the replies to them, counted."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aio_pika
from aiormq.abc import DeliveredMessage
from pydantic import JsonValue

from tests.benchmarks.program import Program
from tests.support.broker import slot
from worker.settings import Settings

_AT_ONCE: Final = 200
_STUCK_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Request:
    """A run request, and the text that goes over the wire."""

    run_id: str
    session_id: str
    body: bytes


def request(team_id: str, session_id: str, text: str, **more: JsonValue) -> Request:
    """A request of a new run, with more fields if they are given."""
    run_id = str(uuid.uuid4())
    body = {"run_id": run_id, "session_id": session_id, "team_id": team_id, "input": text, **more}
    return Request(run_id, session_id, json.dumps(body).encode())


def requests(team_id: str, number: int, *, sessions: int, name: str = "session") -> list[Request]:
    """So many requests, the sessions one after the other."""
    return [request(team_id, f"{name}-{one % sessions}", f"question {one}") for one in range(number)]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it was consumed."""

    at: float
    """By the monotonic clock."""
    run_id: str
    body: bytes


class Traffic:
    """The producer and the consumer of one prefix: a connection that publishes, and one that only counts replies.

    Messages of the results queue are consumed without acknowledgements, by the thinnest client there is: what it costs
    the machine is taken from whom it measures.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = asyncio.Event()
        self._bodies: dict[str, bytes] = {}
        self._contradicted: list[str] = []
        self.replies: list[Reply] = []
        """The first to each request, in the order of the results queue."""
        self.repeated = 0
        """How many came again, as the contract allows."""

    async def __aenter__(self) -> Self:
        url = self._settings.amqp_url.get_secret_value()
        self._publishing = await aio_pika.connect(url)
        self._consuming = await aio_pika.connect(url)
        self._channel = await self._publishing.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = await self._channel.get_exchange(f"{self._settings.prefix}.requests", ensure=False)
        self._control = await self._channel.get_exchange(f"{self._settings.prefix}.control", ensure=False)
        channel = await (await self._consuming.channel()).get_underlay_channel()
        await channel.basic_consume(f"{self._settings.prefix}.results", self._received, no_ack=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._publishing.close()
        await self._consuming.close()

    async def publish(self, requests: Sequence[Request], *, queue: str | None = None) -> None:
        """Publish with confirms: each session's in order, to its partition or, for a peer, all to one queue."""
        for start in range(0, len(requests), _AT_ONCE):
            await asyncio.gather(*(self._publish(one, queue) for one in requests[start : start + _AT_ONCE]))

    async def lone(self, request: Request, *, queue: str | None = None) -> float:
        """Publish one request and return the seconds to its reply."""
        before = len(self.replies)
        start = time.monotonic()
        await self._publish(request, queue)
        await self.replied(before + 1)
        reply = self.replies[before]
        assert reply.run_id == request.run_id
        return reply.at - start

    async def cancel(self, request: Request) -> None:
        """Say that a request is cancelled, with a confirm."""
        said = {"type": "cancel", "run_id": request.run_id, "session_id": request.session_id}
        message = aio_pika.Message(json.dumps(said).encode(), content_type="application/json", delivery_mode=2)
        await self._control.publish(message, "")

    async def reply_to(self, request: Request) -> Reply:
        """Wait for the reply to a request."""
        while request.run_id not in self._bodies:
            await self.replied(len(self.replies) + 1)
        return next(reply for reply in reversed(self.replies) if reply.run_id == request.run_id)

    async def replied(self, number: int, *programs: Program) -> None:
        """Wait until so many requests have a reply; fail if one of the programs ends, or none comes any more."""
        while (so_far := len(self.replies)) < number:
            self._changed.clear()
            try:
                async with asyncio.timeout(_STUCK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                for program in programs:
                    program.check()
                raise RuntimeError(f"{so_far} of {number} replies, and no more of them") from None

    def check(self, requests: Sequence[Request]) -> None:
        """Raise RuntimeError unless each of these, and nothing else, was answered, in one way, and with success."""
        expected = {one.run_id for one in requests}
        if self._bodies.keys() != expected:
            raise RuntimeError(f"replies to {len(self._bodies)} requests, and not to the {len(expected)} published")
        if self._contradicted:
            raise RuntimeError(f"{len(self._contradicted)} requests were answered again, and otherwise")
        for reply in self.replies:
            if json.loads(reply.body)["status"] != "COMPLETED":
                raise RuntimeError(f"a turn has failed: {reply.body.decode()}")

    async def _publish(self, request: Request, queue: str | None) -> None:
        message = aio_pika.Message(
            request.body, content_type="application/json", delivery_mode=2, message_id=request.run_id
        )
        exchange = self._exchange if queue is None else self._channel.default_exchange
        await exchange.publish(message, slot(request.session_id) if queue is None else queue)

    async def _received(self, message: DeliveredMessage) -> None:
        run_id = message.header.properties.message_id or ""
        known = self._bodies.setdefault(run_id, message.body)
        if known is message.body:
            self.replies.append(Reply(time.monotonic(), run_id, message.body))
            self._changed.set()
        else:
            self.repeated += 1
            if known != message.body:
                self._contradicted.append(run_id)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a program went, and at what cost."""

    turns_per_second: float
    cpu_microseconds: float
    """Of the program itself, a turn."""


async def pace_of(program: Program, traffic: Traffic, number: int) -> Pace:
    """Measure a program that answers so many requests, from the first tenth of its replies to the last tenth.

    At the one it is warm, at the other it still has all the requests it wants. Measured to the last reply, whoever has
    more turns under way at once would be given, at the end, those that it had begun before the measurement.
    """
    first, last = number // 10, number - number // 10
    await traffic.replied(first, program)
    cpu, before = program.cpu_seconds(), len(traffic.replies)
    await traffic.replied(last, program)
    used, after = program.cpu_seconds() - cpu, len(traffic.replies)
    seconds = traffic.replies[last - 1].at - traffic.replies[first - 1].at
    await traffic.replied(number, program)
    return Pace((last - first) / seconds, used / (after - before) * 1_000_000)
