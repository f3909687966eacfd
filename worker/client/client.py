"""`RunClient`: publish run requests from Python, and get the replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from schemas.control import CancelRequest
from schemas.events import RunEvent, event_key
from schemas.replies import RunReply
from schemas.requests import RunRequest
from worker.client.link import Link
from worker.client.pending import PendingRun, message_of
from worker.client.reconnector import Reconnector
from worker.client.submitted import SubmittedRuns
from worker.client.watch import Watch
from worker.errors import BrokerUnavailable, ClientClosed, ClientTimedOut, PublishNacked, UnknownRun
from worker.intake.slots import slot_of
from worker.intake.topology import Topology
from worker.operations import tracing

_NACKED_SECONDS: Final = 1.0


class RunClient:
    """A producer's connection: publishes run requests with confirms, and receives their replies directly.

    An async context manager; one client serves any number of concurrent runs.

        import asyncio
        from teamturn import RunClient, RunRequest

        async def main():
            async with RunClient("amqp://guest:guest@localhost:5672/") as client:
                request = RunRequest(run_id="r-1", session_id="chat-1", team_id="capital", input="Where is Paris?")
                reply = await client.run(request)
                print(reply.status.value, reply.content)

        asyncio.run(main())

    Within an OpenTelemetry span, each request carries its trace on: `traceparent` and `tracestate`.

    A connection that is lost is made again, and what is unanswered by then is published again with the same run_id: it
    gets the same reply and is not executed twice. Who waits notices nothing of it, but for the time that it takes. So
    it is while RabbitMQ takes nothing because its memory or disk is short.

    Everything that it raises is a ClientError with a sentence for people; entering the block can raise StartupError and
    BrokerUnavailable as well, where there is nothing to connect to.

    Args:
        amqp_url: RabbitMQ, as in TEAMTURN_AMQP_URL.
        prefix: The workers' TEAMTURN_PREFIX.
        max_unanswered: How many requests may be without a reply at a time. The next one waits until one of them has
            its reply: a producer that is faster than its workers is slowed down, and memory is bounded.

    """

    def __init__(self, amqp_url: str, *, prefix: str = "teamturn", max_unanswered: int = 1_000) -> None:
        if max_unanswered < 1:
            raise ValueError("max_unanswered is 1 at least")
        self._names = Topology(prefix=prefix, partitions=1)
        self._reconnector = Reconnector(SecretStr(amqp_url), self._names, self._received)
        self._places = asyncio.Semaphore(max_unanswered)
        self._pending: dict[str, PendingRun] = {}
        """By correlation id."""
        self._keepers: dict[PendingRun, asyncio.Task[None]] = {}
        self._submitted = SubmittedRuns()
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Connect. Raises StartupError, BrokerUnavailable or NoRoute: at first, a mistake is the likelier reason."""
        await self._reconnector.open()
        self._reconnecting = asyncio.create_task(self._reconnector.run(), name="teamturn client")
        self._is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect. Whatever is still waited for ends with ClientClosed; its request stays queued."""
        self._is_open = False
        keepers = list(self._keepers.values())
        for pending in list(self._keepers):
            pending.failed(ClientClosed("the client was closed; what was published stays so, and is executed"))
        tasks = [*keepers, *([self._reconnecting] if self._reconnecting else [])]
        await self._reconnector.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, request: RunRequest, *, timeout_seconds: float = 600) -> RunReply:
        """Publish a request and wait for its reply, over a lost connection as well.

            reply = await client.run(RunRequest(run_id="r-1", team_id="capital", input="Where is Paris?"))

        Raises ClientTimedOut (a TimeoutError) if there is none in time, NoRoute, PublishNacked, RequestTooLarge and
        ClientClosed. The request is not lost by a time-out: sent again with the same run_id, it gets the same reply
        and is not executed twice.
        """
        async with (
            self._within(timeout_seconds, f"no reply to run {request.run_id!r}"),
            self._asked(request) as pending,
        ):
            return await pending.reply

    async def submit(self, request: RunRequest, *, to_results: bool = False, timeout_seconds: float = 600) -> str:
        """Publish a request, and return its run_id when RabbitMQ has it.

            run_id = await client.submit(request)
            reply = await client.result(run_id)

        The reply comes to this client, and can be asked for by `result`; or, with `to_results`, to the queue
        `{prefix}.results`, for whoever consumes that. Waits while `max_unanswered` are unanswered. Raises as `run`.
        """
        async with self._within(timeout_seconds, f"run {request.run_id!r} was not published"):
            if to_results:
                await self._persistently(partial(self._publish, message_of(request), slot_of(request.session_id)))
            else:
                await self._submit(request)
        return request.run_id

    async def result(self, run: str | RunRequest, *, timeout_seconds: float = 600) -> RunReply:
        """Wait for the reply of a run that was submitted.

            reply = await client.result(run_id)  # submitted by this client
            reply = await client.result(request)  # submitted by any process, at any time

        Given a request that this client has not submitted, it publishes that again: one that is finished gets its
        stored reply, one that is not is waited for, and neither is executed twice. Raises as `run` does, and UnknownRun
        for a run_id that this client did not submit, or whose reply it does not keep any more: it keeps the newest
        1,000, up to 64 MiB.
        """
        run_id = run if isinstance(run, str) else run.run_id
        pending = self._submitted.find(run_id)
        if not isinstance(run, str) and (pending is None or pending.request != run or pending.has_failed):
            return await self.run(run, timeout_seconds=timeout_seconds)
        if pending is None:
            raise UnknownRun(f"this client waits for no reply of run {run_id!r}: give result() the request itself")
        async with self._within(timeout_seconds, f"no reply to run {run_id!r}"):
            return await asyncio.shield(pending.reply)

    async def stream(self, request: RunRequest, *, timeout_seconds: float = 600) -> AsyncGenerator[RunEvent, None]:
        """Publish a request as one that is watched, and yield its events as they happen, in order and none twice.

            async for event in client.stream(request):
                if event.type == "content_delta":
                    print(event.text, end="")

        The last one is `run_finished`, with the whole reply, also where events before it got lost: with a worker, while
        the connection was away, or because 10,000 (or 32 MiB) were not read yet. Raises as `run` does.
        """
        request = request.model_copy(update={"stream": True})
        key = event_key(request.target, request.session_id, request.run_id)
        watch = Watch(request, self._names.events, key)
        # A time limit can't be one around the whole: a generator is left at each yield.
        async with self._asked_within(timeout_seconds, request, watch) as answered:
            async for event in watch.events(answered):
                yield event

    async def cancel(
        self,
        run_id: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        timeout_seconds: float = 30,
    ) -> None:
        """Say that a run is not wanted any more, running, waiting or still to come; return when RabbitMQ has that.

            await client.cancel("r-1", session_id="chat-1", user_id="ada")

        Session and user must be the run's: of anybody else's run nothing is changed. A run that is cancelled is
        answered as CANCELLED; one that is finished by then stays as it is. Raises as `run` does.
        """
        said = CancelRequest.model_validate(
            {"type": "cancel", "run_id": run_id, "session_id": session_id, "user_id": user_id}
        )
        message = Message(
            body=said.model_dump_json().encode(),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
        )
        async with self._within(timeout_seconds, f"the cancellation of run {run_id!r} was not published"):
            await self._persistently(lambda link: link.publish(message, exchange=self._names.control, routing_key=""))

    @property
    def trouble(self) -> str | None:
        """What keeps it from RabbitMQ now, as a sentence without its end; None: nothing that it knows of."""
        return self._reconnector.trouble

    # Requests that are unanswered.

    @asynccontextmanager
    async def _asked(self, request: RunRequest, watch: Watch | None = None) -> AsyncIterator[PendingRun]:
        """Have a request published until it is answered, or until the end of the block."""
        pending = await self._begin(request, watch)
        try:
            yield pending
        finally:
            await self._stop(pending)

    async def _begin(self, request: RunRequest, watch: Watch | None = None) -> PendingRun:
        """Wait for a place among the unanswered, and have a request published until it is answered."""
        self._check_open()
        await self._places.acquire()
        try:
            self._check_open()
            pending = PendingRun(request, watch)
        except BaseException:
            self._places.release()
            raise
        self._pending[pending.correlation_id] = pending
        keeper = asyncio.create_task(self._keep(pending), name=f"run {request.run_id}")
        # Not in the task itself: one that is cancelled before its first step never comes to its `finally`.
        keeper.add_done_callback(lambda _: self._forget(pending))
        self._keepers[pending] = keeper
        return pending

    def _forget(self, pending: PendingRun) -> None:
        del self._pending[pending.correlation_id]
        del self._keepers[pending]
        self._places.release()

    async def _stop(self, pending: PendingRun) -> None:
        # Told in two ways: aiormq can swallow a cancellation.
        pending.reply.cancel()
        keeper = self._keepers.get(pending)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _submit(self, request: RunRequest) -> None:
        before = self._submitted.find(request.run_id)
        if before is not None and before.request == request and not before.reply.done():
            await asyncio.shield(before.published)
            return
        pending = await self._begin(request)
        self._submitted.add(pending)
        try:
            await asyncio.shield(pending.published)
        except BaseException:
            self._submitted.drop(pending)
            await self._stop(pending)
            raise

    async def _keep(self, pending: PendingRun) -> None:
        """Publish a request on each link, until it is answered."""
        try:
            while not pending.reply.done():
                link = await self._reconnector.link()
                try:
                    if pending.watch is not None:
                        await pending.watch.begin(link)
                    await self._publish(pending.message(), slot_of(pending.request.session_id), link)
                except BrokerUnavailable:
                    continue
                except PublishNacked:
                    if not pending.published.done():
                        raise
                    # It was taken once, and will be answered; only the way of the answer is new.
                    await asyncio.sleep(_NACKED_SECONDS)
                    continue
                pending.confirmed()
                either: set[asyncio.Future[Any]] = {pending.reply, link.ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for the reply is told
            pending.failed(error)

    async def _publish(self, request: Message, slot: str, link: Link) -> None:
        """Publish a request on a link, in the trace of whoever asks, if there is one."""
        exchange = self._names.requests
        sending = tracing.sending(
            request.headers,
            exchange=exchange,
            routing_key=slot,
            message_id=request.message_id,
            body_bytes=request.body_size,
        )
        with sending:
            await link.publish(request, exchange=exchange, routing_key=slot)

    async def _persistently(self, publish: Callable[[Link], Awaitable[None]]) -> None:
        """Publish a message that nobody answers, on as many links as it takes."""
        while True:
            self._check_open()
            link = await self._reconnector.link()
            try:
                return await publish(link)
            except BrokerUnavailable:
                continue

    async def _received(self, message: AbstractIncomingMessage) -> None:
        pending = self._pending.get(message.correlation_id or "")
        if pending is not None:  # else it is not waited for any more
            pending.answered(message.body)

    # Limits.

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClientClosed("the client is not connected: use it as `async with RunClient(…)`")

    @asynccontextmanager
    async def _within(self, seconds: float, what: str) -> AsyncIterator[None]:
        """Raise ClientTimedOut, which says what did not happen, after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise self._timed_out(seconds, what) from None

    def _timed_out(self, seconds: float, what: str) -> ClientTimedOut:
        trouble = self._reconnector.trouble
        return ClientTimedOut(f"{what} within {seconds:g} s: {trouble or 'is a worker running?'}")

    @asynccontextmanager
    async def _asked_within(
        self, seconds: float, request: RunRequest, watch: Watch
    ) -> AsyncIterator[asyncio.Future[RunReply]]:
        """As `_asked`; the reply ends with ClientTimedOut after so many seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        what = f"no reply to run {request.run_id!r}"
        async with self._within(seconds, what):
            pending = await self._begin(request, watch)
        timer = loop.call_at(end, lambda: pending.failed(self._timed_out(seconds, what)))
        try:
            yield pending.reply
        finally:
            timer.cancel()
            await self._stop(pending)
            await watch.end()
