"""`RunClient`: publish run requests from Python, and get the replies."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError
from pydantic import SecretStr, ValidationError

from schemas.control import CancelRequest
from schemas.events import RUN_EVENT, RunEvent, RunFinished, event_key
from schemas.replies import RunReply
from schemas.requests import RunRequest
from worker.broker import BROKER_ERRORS, BrokerConnection, connect
from worker.errors import BrokerUnavailable
from worker.intake.slots import slot_of
from worker.intake.topology import Topology

_DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to"
_PUBLISH_SECONDS: Final = 30.0
_LATE_SECONDS: Final = 1.0
"""How long after the reply the events before it are waited for."""
_FIRST: Final = asyncio.FIRST_COMPLETED


class RunClient:
    """A producer's connection: publishes run requests with confirms, and receives their replies directly.

    An async context manager; one client serves any number of concurrent runs.

        async with RunClient("amqp://guest:guest@localhost:5672/") as client:
            reply = await client.run(RunRequest(run_id=…, team_id="capital", input="What is the capital of France?"))

    Args:
        amqp_url: RabbitMQ, as in TEAMTURN_AMQP_URL.
        prefix: The workers' TEAMTURN_PREFIX.

    """

    def __init__(self, amqp_url: str, *, prefix: str = "teamturn") -> None:
        self._url = SecretStr(amqp_url)
        self._names = Topology(prefix=prefix, partitions=1)
        self._connection: BrokerConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._control: AbstractExchange | None = None
        self._channel: AbstractChannel | None = None
        self._waiting: dict[str, asyncio.Future[RunReply]] = {}

    async def __aenter__(self) -> Self:
        """Connect. Raises StartupError or BrokerUnavailable."""
        self._connection = await connect(self._url, name="teamturn client")
        channel = await self._connection.amqp.channel(publisher_confirms=True, on_return_raises=True)
        channel.close_callbacks.add(self._lost)
        self._channel = channel
        try:
            self._exchange = await channel.get_exchange(self._names.requests)
            self._control = await channel.get_exchange(self._names.control)
            replies = await channel.get_queue(_DIRECT_REPLY_TO, ensure=False)
            await replies.consume(self._received, no_ack=True)
        except BaseException as error:
            await self._connection.close()
            if isinstance(error, ChannelNotFoundEntity):
                raise BrokerUnavailable(
                    f"RabbitMQ has no exchange {self._names.requests!r}: start a worker, or run teamturn topology apply"
                ) from None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect. A run that is still waited for ends with BrokerUnavailable; its request stays queued."""
        if self._connection is not None:
            await self._connection.close()
        self._lost()

    async def run(self, request: RunRequest, *, timeout_seconds: float = 600) -> RunReply:
        """Publish a request and wait for its reply.

        Raises TimeoutError if there is none in time and BrokerUnavailable if the connection is lost. The request is
        not lost by either: sent again with the same run_id, it gets the same reply and is not executed twice.
        """
        correlation_id = uuid.uuid4().hex
        future: asyncio.Future[RunReply] = asyncio.get_running_loop().create_future()
        self._waiting[correlation_id] = future
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._publish(request, correlation_id)
                return await future
        finally:
            del self._waiting[correlation_id]

    async def stream(self, request: RunRequest, *, timeout_seconds: float = 600) -> AsyncGenerator[RunEvent, None]:
        """Publish a request as one that is watched, and yield its events as they happen.

        The last one is `run_finished`, with the reply, also where the events before it got lost. Raises as `run` does.

            async for event in client.stream(request):
                if event.type == "content_delta":
                    print(event.text, end="")
        """
        request = request.model_copy(update={"stream": True})
        if self._channel is None:
            raise BrokerUnavailable("the client is not connected: use it as `async with RunClient(…)`")
        events: asyncio.Queue[RunEvent] = asyncio.Queue()

        async def received(message: AbstractIncomingMessage) -> None:
            with suppress(ValidationError):  # of a later version
                events.put_nowait(RUN_EVENT.validate_json(message.body))

        queue = await self._channel.declare_queue(exclusive=True, auto_delete=True)
        await queue.bind(self._names.events, event_key(request.target, request.session_id, request.run_id))
        await queue.consume(received, no_ack=True)
        answered = asyncio.create_task(self.run(request, timeout_seconds=timeout_seconds))
        try:
            async for event in _until_finished(events, answered, request):
                yield event
        finally:
            answered.cancel()
            await asyncio.gather(answered, return_exceptions=True)
            # The queue goes with the connection at the latest; a generator can be closed after that.
            with suppress(Exception):
                await queue.delete(if_unused=False, if_empty=False)

    async def cancel(self, run_id: str, *, session_id: str | None = None, user_id: str | None = None) -> None:
        """Say that a run is not wanted any more, running, waiting or still to come; return when RabbitMQ has that.

        Session and user must be the run's: of anybody else's run nothing is changed. A run that is cancelled is
        answered as CANCELLED; one that is finished by then stays as it is. Raises BrokerUnavailable.
        """
        said = CancelRequest.model_validate(
            {"type": "cancel", "run_id": run_id, "session_id": session_id, "user_id": user_id}
        )
        message = Message(
            body=said.model_dump_json().encode(),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
        )
        if self._control is None:
            raise BrokerUnavailable("the client is not connected: use it as `async with RunClient(…)`")
        try:
            await self._control.publish(message, "", mandatory=True, timeout=_PUBLISH_SECONDS)
        except (DeliveryError, *BROKER_ERRORS) as error:
            raise BrokerUnavailable(f"it could not be published ({type(error).__name__})") from error

    async def _publish(self, request: RunRequest, correlation_id: str) -> None:
        if self._exchange is None:
            raise BrokerUnavailable("the client is not connected: use it as `async with RunClient(…)`")
        message = Message(
            body=request.model_dump_json(exclude_defaults=True).encode(),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=request.run_id,
            correlation_id=correlation_id,
            reply_to=_DIRECT_REPLY_TO,
            timestamp=datetime.now(UTC),
        )
        try:
            await self._exchange.publish(message, slot_of(request.session_id), mandatory=True, timeout=_PUBLISH_SECONDS)
        except (DeliveryError, *BROKER_ERRORS) as error:
            raise BrokerUnavailable(f"the request could not be published ({type(error).__name__})") from error

    async def _received(self, message: AbstractIncomingMessage) -> None:
        future = self._waiting.get(message.correlation_id or "")
        if future is None or future.done():
            return  # not waited for any more
        try:
            future.set_result(RunReply.model_validate_json(message.body))
        except ValidationError as error:
            future.set_exception(error)

    def _lost(self, *_: Any) -> None:  # noqa: ANN401 - aio-pika says who closed and why
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("the connection to RabbitMQ was lost"))


async def _until_finished(
    events: asyncio.Queue[RunEvent], answered: asyncio.Task[RunReply], request: RunRequest
) -> AsyncIterator[RunEvent]:
    """Yield events until the run's last one; make that of the reply, where it does not come."""
    last = 0
    while True:
        coming = asyncio.create_task(events.get())
        try:
            # The reply may be here before the last events, which go another way.
            limit = _LATE_SECONDS if answered.done() else None
            await asyncio.wait({coming, answered} if limit is None else {coming}, timeout=limit, return_when=_FIRST)
        finally:
            coming.cancel()
        if coming.done() and not coming.cancelled():
            event = coming.result()
            if event.type == "run_finished":
                # Of a large reply the event has not all.
                yield event.model_copy(update={"reply": await answered})
                return
            last = event.number
            yield event
        elif answered.done() and limit is not None:
            yield _finished(answered.result(), request, last + 1)
            return


def _finished(reply: RunReply, request: RunRequest, number: int) -> RunFinished:
    target = request.target
    return RunFinished(
        run_id=request.run_id,
        session_id=request.session_id,
        session_type=target.type,
        target_id=target.id,
        attempt=reply.attempt,
        number=number,
        time=time.time(),
        reply=reply,
    )
