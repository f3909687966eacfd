"""Sessions that keep asking, and what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from types import TracebackType
from typing import Self

import aio_pika
import asyncpg
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelInvalidStateError

from tests.support.broker import slot
from tests.support.waiting import eventually
from worker.settings import Settings

_LOST = (*CONNECTION_EXCEPTIONS, ChannelInvalidStateError, asyncio.TimeoutError)
_RECONNECT_SECONDS = 0.1


def partition_of(session_id: str, partitions: int) -> int:
    """The partition of a session, by the contract."""
    return int(slot(session_id), 16) % partitions


def sessions_of(partition: int, partitions: int, *, number: int, name: str = "s") -> list[str]:
    """So many session ids that are all in one partition."""
    ids = (f"{name}-{one}" for one in count())
    fitting = (session_id for session_id in ids if partition_of(session_id, partitions) == partition)
    return [session_id for session_id, _ in zip(fitting, range(number), strict=False)]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as it was consumed."""

    session_id: str
    run_id: str
    body: bytes
    at: float
    """By the monotonic clock."""


class Load:
    """Sessions that ask one question after the other, some ahead of their answers, until `finish`.

    A producer as the contract has it: a session's next request is published when the one before is confirmed; one
    whose confirm was lost is published again. It outlasts a restart of the broker.
    """

    def __init__(self, settings: Settings, *, sessions_each: int = 4, ahead: int = 8, team_id: str = "steady") -> None:
        """So many sessions in each partition, each with so many requests that are not answered."""
        self._url = settings.amqp_url.get_secret_value()
        self._prefix = settings.prefix
        self._team_id = team_id
        self._partition = {
            session_id: partition
            for partition in range(settings.partitions)
            for session_id in sessions_of(partition, settings.partitions, number=sessions_each)
        }
        self._room = {session_id: asyncio.Semaphore(ahead) for session_id in self._partition}
        self._unconfirmed: dict[str, str] = {}
        self._finishing: float | None = None
        self.published: dict[str, list[str]] = {session_id: [] for session_id in self._partition}
        """The run ids of each session, in the order in which they were published."""
        self.answers: list[Answer] = []
        """Every reply, in the order of the results queue."""
        self._answered: set[str] = set()

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def flows(self, *, seconds: float = 20) -> None:
        """Wait until each session has an answer to a request that was published after now."""
        seen = {session_id: len(run_ids) for session_id, run_ids in self.published.items()}

        def later_ones_answered() -> bool:
            return all(
                not self._answered.isdisjoint(self.published[session_id][number:])
                for session_id, number in seen.items()
            )

        await eventually(later_ones_answered, seconds=seconds)

    async def finish(self, *, seconds: float = 30) -> None:
        """Ask nothing more, and wait until all is answered."""
        self._finishing = time.monotonic()
        for room in self._room.values():
            room.release()
        await eventually(lambda: self._answered == self._asked(), seconds=seconds)

    def pauses(self, since: float, partitions: Iterable[int] | None = None) -> dict[int, float]:
        """Of each partition, or of those given, the longest time without an answer, from then until `finish`."""
        times = defaultdict(list)
        for answer in self.answers:
            times[self._partition[answer.session_id]].append(answer.at)
        wanted = set(self._partition.values()) if partitions is None else set(partitions)
        return {partition: self._longest(times[partition], since) for partition in sorted(wanted)}

    def session_pauses(self, since: float) -> dict[str, float]:
        """The same for each session."""
        times = defaultdict(list)
        for answer in self.answers:
            times[answer.session_id].append(answer.at)
        return {session_id: self._longest(times[session_id], since) for session_id in self._partition}

    def repeated_turns(self) -> set[str]:
        """The runs whose answer says that they were started more than once."""
        return {answer.run_id for answer in self.answers if json.loads(answer.body)["attempt"] != 1}

    async def mistakes(self, database: asyncpg.Connection) -> list[str]:
        """A sentence for each run that is not stored and answered once and in its order. To be asked after `finish`."""
        return [
            *await self._stored_wrongly(database),
            *self._answered_out_of_order(),
            *await self._answered_otherwise(database),
        ]

    def _asked(self) -> set[str]:
        return {run_id for run_ids in self.published.values() for run_id in run_ids}

    def _longest(self, times: list[float], since: float) -> float:
        until = time.monotonic() if self._finishing is None else self._finishing
        moments = [since, *(moment for moment in times if since < moment < until), until]
        return max(later - earlier for earlier, later in pairwise(moments))

    async def _stored_wrongly(self, database: asyncpg.Connection) -> list[str]:
        rows = await database.fetch(
            "select session_id, array_agg(run_id order by run_index) as runs from ai.agno_runs group by session_id"
        )
        stored = {row["session_id"]: row["runs"] for row in rows}
        return [
            f"{session_id} has {_difference(run_ids, stored.get(session_id, []))} stored"
            for session_id, run_ids in self.published.items()
            if stored.get(session_id, []) != run_ids
        ]

    def _answered_out_of_order(self) -> list[str]:
        first: dict[str, dict[str, None]] = {session_id: {} for session_id in self._partition}
        for answer in self.answers:
            first[answer.session_id].setdefault(answer.run_id)
        return [
            f"{session_id} has {_difference(run_ids, list(first[session_id]))} answered"
            for session_id, run_ids in self.published.items()
            if list(first[session_id]) != run_ids
        ]

    async def _answered_otherwise(self, database: asyncpg.Connection) -> list[str]:
        rows = await database.fetch("select run_id, reply from ai.receipts")
        kept = {row["run_id"]: row["reply"] for row in rows}
        wrong = {answer.run_id for answer in self.answers if kept.get(answer.run_id) != answer.body}
        return [f"{run_id} was answered with other bytes than its stored ones" for run_id in sorted(wrong)]

    async def _run(self) -> None:
        while True:
            with suppress(*_LOST):
                connection = await aio_pika.connect(self._url, timeout=5)
                try:
                    await self._work(connection)
                finally:
                    with suppress(*_LOST):
                        await connection.close()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _work(self, connection: AbstractConnection) -> None:
        """Ask and read the answers, until the connection is lost."""
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        results = await channel.get_queue(f"{self._prefix}.results", ensure=False)
        await results.consume(self._received)
        exchange = await channel.get_exchange(f"{self._prefix}.requests", ensure=False)
        asking = [asyncio.create_task(self._ask(exchange, session_id)) for session_id in self._partition]
        try:
            await lost.wait()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, exchange: AbstractExchange, session_id: str) -> None:
        while (run_id := await self._next(session_id)) is not None:
            body = {"run_id": run_id, "session_id": session_id, "team_id": self._team_id, "input": run_id}
            message = aio_pika.Message(
                json.dumps(body).encode(), content_type="application/json", delivery_mode=2, message_id=run_id
            )
            await exchange.publish(message, slot(session_id))
            del self._unconfirmed[session_id]

    async def _next(self, session_id: str) -> str | None:
        if session_id not in self._unconfirmed:
            await self._room[session_id].acquire()
            if self._finishing is not None:
                return None
            run_id = f"{session_id}/{len(self.published[session_id]):05}"
            self.published[session_id].append(run_id)
            self._unconfirmed[session_id] = run_id
        return self._unconfirmed[session_id]

    async def _received(self, message: AbstractIncomingMessage) -> None:
        run_id = message.message_id or ""
        session_id = run_id.rpartition("/")[0]
        if session_id in self._partition:
            self.answers.append(Answer(session_id, run_id, message.body, time.monotonic()))
            if run_id not in self._answered:
                self._answered.add(run_id)
                self._room[session_id].release()
        with suppress(*_LOST):
            await message.ack()


def _difference(wanted: list[str], found: list[str]) -> str:
    """What differs first, with what is around it."""
    at = next((number for number, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(wanted), len(found)) if at is None else at
    around = slice(max(at - 1, 0), at + 3)
    return f"{found[around]} instead of {wanted[around]} ({len(found)} of {len(wanted)})"
