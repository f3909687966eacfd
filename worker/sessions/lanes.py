"""Lanes: the few database connections on which sessions are locked and written.

A session belongs to one lane, by its id. Its advisory lock is taken on that lane's connection, and its commit and
its unlock go through the same connection: a worker that lost the lock lost the connection, so it can't write. There
is no token to compare and no late writer to refuse.

Statements of concurrent turns are batched naturally: while one is under way, the rows of the next gather; a lone
row never waits. A batch that Postgres refuses is halved until the bad row is alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import asyncpg
import structlog
from pydantic import SecretStr

import sql
from worker.errors import LaneLost, StatementRefused, StoreUnavailable
from worker.measures import UNMEASURED, Measures, Tried
from worker.patience import answered_within
from worker.sessions.database import application_name, connect, translated

_PING_SECONDS: Final = 3.0
"""Well below the lanes' idle_session_timeout."""
_PONG_SECONDS: Final = 5.0
"""An idle lane whose ping is not answered by then is cut off: its worker must stop consuming for others to go on."""
_PROOF_SECONDS: Final = 1.0
"""How long a connection that was alive is taken to be so; far below the lanes' idle_session_timeout."""
_STATEMENT_SECONDS: Final = 40.0
"""Past the server's statement_timeout: an answer that is late by then will not come, the line is cut."""
_LARGEST_BATCH: Final = 256
_LARGEST_BATCH_BYTES: Final = 4 * 2**20
"""A worker's membership waits on the lane as well: 14 commits of 12 MB at once cost it its partitions."""
_BROKEN: Final = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The connection can't be used any more. An internal error is what asyncpg makes of a statement between Postgres's last
words (idle_session_timeout) and the end of the connection."""
_TAKES_NO_WRITES: Final = "Postgres takes no writes any more: it has become a stand-by, or was made read-only"
_RECONNECT_SECONDS: Final = (0.1, 0.25, 0.5)

_log = structlog.get_logger()

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Statement(Generic[Row, Result]):
    """A statement that takes many rows at once."""

    name: str
    text: str
    arguments: Callable[[Sequence[Row]], Sequence[Any]]
    """The statement's arguments for some rows."""
    results: Callable[[Sequence[Row], Sequence[asyncpg.Record]], Sequence[Result | Exception]]
    """What each row gets, in the rows' order; an exception is raised where the row was submitted."""
    undo: Callable[[Sequence[Row]], tuple[str, Sequence[Any]]] | None = None
    """The statement, with its arguments, that takes back what is left of a failed one: a lock outlives a rollback."""
    droppable: bool = False
    """Whether a row need not be run any more once its caller is cancelled."""
    bytes_of: Callable[[Row], int] = lambda _: 0
    """About how large a row is, where one can be large."""


@dataclass(slots=True)
class _Submitted:
    row: Any
    result: asyncio.Future[Any]


@dataclass
class LaneConnection:
    """One life of a lane's connection. Locks taken here are gone when it is closed."""

    connection: asyncpg.Connection
    measures: Measures = UNMEASURED
    _waiting: dict[str, tuple[Statement[Any, Any], list[_Submitted]]] = field(default_factory=dict)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: list[_Submitted] = field(default_factory=list)
    _lost: str | None = None
    _told_of_loss: set[Callable[[], None]] = field(default_factory=set)
    _alive_at: float = field(default_factory=time.monotonic)
    """When the last statement was sent that was answered: then, at least, Postgres had the connection and its locks."""

    @contextmanager
    def telling_of_loss(self, told: Callable[[], None]) -> Iterator[None]:
        """Have `told` called when the connection is lost during the block, or was before."""
        if self._lost is not None:
            told()
        self._told_of_loss.add(told)
        try:
            yield
        finally:
            self._told_of_loss.discard(told)

    async def submit(self, statement: Statement[Row, Result], row: Row) -> Result:
        """Run the statement for a row, together with whatever else waits for it, and return the row's result.

        Raises LaneLost when the connection is gone: whether the statement took effect is then unknown.
        A caller that is cancelled takes nothing back: the statement runs (a droppable one only if it had begun), and
        its result is dropped.
        """
        return await self.post(statement, row)

    def post(self, statement: Statement[Row, Result], row: Row) -> asyncio.Future[Result]:
        """Submit a row without waiting for its result. Raises LaneLost as `submit` does."""
        if self._lost is not None:
            raise LaneLost(self._lost)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(statement.name, (statement, []))[1].append(_Submitted(row, future))
        self._work.set()
        return future

    def withdraw(self, posted: asyncio.Future[Any]) -> bool:
        """Take back a row that was posted, of a droppable statement; return whether it could be: it had not begun."""
        if posted.done() or any(one.result is posted for one in self._under_way):
            return False
        return posted.cancel()

    async def prove_alive(self) -> None:
        """Return if the connection was alive a moment ago; ask Postgres, if that is not known. Raises LaneLost.

        A worker that was frozen finds answers from before, and only after them that the connection is gone.
        """
        if self._lost is not None or time.monotonic() - self._alive_at > _PROOF_SECONDS:
            await self.submit(_PROOF, None)

    def abandon(self, reason: str) -> None:
        """Close the connection, and so give every lock back that it holds."""
        self._lose(reason)
        self.connection.terminate()
        self._work.set()

    async def run(self) -> None:
        """Run what is submitted, until the connection is lost (then return) or the task is cancelled."""
        try:
            while not self.connection.is_closed():
                await self._wait_for_work()
                while self._waiting:
                    statement, batch = self._next_batch()
                    await self._execute(statement, batch)
        except StoreUnavailable as error:
            self._lose(str(error))
        finally:
            self._lose("the lane is closed")
            # Closing says goodbye politely; on a dead connection there is nobody to say it to.
            self.connection.terminate()

    async def _wait_for_work(self) -> None:
        while not self._waiting:
            self._work.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS):
                    await self._work.wait()
            if not self._waiting:
                # It also says whether the connection was lost meanwhile, and whether the next commit would be refused.
                answered = await self._fetch(sql.PING, limit_seconds=_PONG_SECONDS)
                if any(row["read_only"] for row in answered):
                    raise LaneLost(_TAKES_NO_WRITES)

    def _next_batch(self) -> tuple[Statement[Any, Any], list[_Submitted]]:
        name = next(iter(self._waiting))
        statement, submitted = self._waiting.pop(name)
        number = _as_many_as_fit(statement, submitted)
        if number < len(submitted):
            # The rest goes to the end: other statements have their turn in between.
            self._waiting[name] = (statement, submitted[number:])
        batch = submitted[:number]
        if statement.droppable:
            batch = [one for one in batch if not one.result.cancelled()]
        self._under_way = batch
        return statement, batch

    async def _execute(self, statement: Statement[Any, Any], batch: list[_Submitted]) -> None:
        if not batch:
            return
        rows = [one.row for one in batch]
        try:
            records = await self._fetch(statement.text, *statement.arguments(rows))
        except LaneLost:
            raise  # every row that is under way is told when the connection is given up
        except Exception as error:  # noqa: BLE001 - each row must get its answer
            await self._undo(statement, rows)
            if len(batch) == 1:
                _settle(batch, [error])
                return
            half = len(batch) // 2
            await self._execute(statement, batch[:half])
            await self._execute(statement, batch[half:])
            return
        self.measures.batched(statement.name, len(rows))
        try:
            results = statement.results(rows, records)
        except Exception as error:  # noqa: BLE001 - what can't be read is its callers' trouble, not the lane's
            await self._undo(statement, rows)
            results = [error] * len(batch)
        _settle(batch, results)

    async def _undo(self, statement: Statement[Any, Any], rows: Sequence[Any]) -> None:
        if statement.undo is None:
            return
        text, arguments = statement.undo(rows)
        try:
            await self._fetch(text, *arguments)
        except Exception as error:
            # What can't be taken back goes with the connection.
            raise LaneLost(f"a failed {statement.name} could not be undone: {error}") from error

    async def _fetch(
        self,
        text: str,
        *arguments: Any,  # noqa: ANN401 - as asyncpg
        limit_seconds: float = _STATEMENT_SECONDS,
    ) -> list[asyncpg.Record]:
        sent = time.monotonic()
        try:
            async with answered_within(limit_seconds):
                records: list[asyncpg.Record] = await self.connection.fetch(text, *arguments)
        except asyncpg.DataError as error:  # raised before anything was sent, or by Postgres: the row is at fault
            raise StatementRefused(type(error).__name__) from error
        except asyncpg.ReadOnlySQLTransactionError as error:
            # A fail-over; another connection, to another server maybe, can write.
            raise LaneLost(_TAKES_NO_WRITES) from error
        except (asyncpg.PostgresError, *_BROKEN, TimeoutError) as error:
            if self.connection.is_closed() or isinstance(error, _BROKEN):
                raise LaneLost(f"the connection to Postgres is gone ({type(error).__name__})") from error
            raise translated(error) from error
        self._alive_at = sent
        return records

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            for told in tuple(self._told_of_loss):
                told()
        waiting = [one for _, submitted in self._waiting.values() for one in submitted]
        for one in (*self._under_way, *waiting):
            _settle([one], [LaneLost(reason)])
        self._waiting.clear()


_PROOF: Final = Statement[None, None](
    name="ping", text=sql.PING, arguments=lambda _: (), results=lambda rows, _: [None] * len(rows)
)


def _as_many_as_fit(statement: Statement[Any, Any], submitted: Sequence[_Submitted]) -> int:
    """Return how many of the first rows make a batch: one at least, however large it is."""
    size_bytes = 0
    for number, one in enumerate(submitted[:_LARGEST_BATCH]):
        size_bytes += statement.bytes_of(one.row)
        if number and size_bytes > _LARGEST_BATCH_BYTES:
            return number
    return min(len(submitted), _LARGEST_BATCH)


def _settle(batch: Sequence[_Submitted], results: Sequence[object]) -> None:
    for one, result in zip(batch, results, strict=True):
        if one.result.done():
            continue  # the caller was cancelled
        if isinstance(result, Exception):
            one.result.set_exception(result)
        else:
            one.result.set_result(result)


class Lane:
    """One lane: a connection, and a new one whenever it is lost."""

    def __init__(self, url: SecretStr, schema: str, number: int, measures: Measures = UNMEASURED) -> None:
        self.number = number
        self._url = url
        self._schema = schema
        self._measures = measures
        self._current: LaneConnection | None = None
        self._listeners: dict[str, Callable[[], None]] = {}
        self.connected_since = -math.inf
        """By the monotonic clock, of a connection that followed a lost one."""

    @property
    def alive(self) -> bool:
        """Whether the lane has a connection now."""
        return self._current is not None

    def listen(self, channel: str, notified: Callable[[], None]) -> None:
        """Have `notified` called for each NOTIFY on a channel, and whenever the lane has a new connection.

        To be called before the lane is opened.
        """
        self._listeners[channel] = notified

    def connection(self) -> LaneConnection:
        """Return the lane's connection. Raises StoreUnavailable while there is none."""
        if self._current is None:
            raise StoreUnavailable("no connection to Postgres")
        return self._current

    async def open(self) -> None:
        """Make the first connection. Raises StartupError or StoreUnavailable."""
        self._current = LaneConnection(await self._connect(), self._measures)

    async def run(self) -> None:
        """Serve the lane, reconnecting as long as it takes, until the task is cancelled."""
        while True:
            if self._current is None:
                self._current = LaneConnection(await self._reconnected(), self._measures)
                self.connected_since = time.monotonic()
                _log.info("lane_reconnected", lane=self.number)
            try:
                await self._current.run()
            finally:
                self._current = None
            _log.warning("lane_lost", lane=self.number, consequence="its sessions' locks are free")

    async def _connect(self) -> asyncpg.Connection:
        name = application_name(f"lane {self.number}")
        connection = await connect(self._url, self._schema, application=name, lane=True)
        try:
            for channel, notified in self._listeners.items():
                await connection.add_listener(channel, lambda *_, call=notified: call())
                notified()
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _reconnected(self) -> asyncpg.Connection:
        return await _repeated(self._connect, self.number, self._measures)


async def _repeated(
    attempt: Callable[[], Awaitable[asyncpg.Connection]], lane: int, measures: Measures
) -> asyncpg.Connection:
    tries = 0
    while True:
        if tries:
            measures.retried(Tried.CONNECT_POSTGRES)
        try:
            return await attempt()
        # Also what would be a mistake of the operator's at the start: a server that comes back, or a fail-over,
        # refuses users and databases for a while, and a running worker must outlast that.
        except Exception as error:  # noqa: BLE001
            if tries % 10 == 0:
                _log.warning("lane_unavailable", lane=lane, reason=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS[min(tries, len(_RECONNECT_SECONDS) - 1)])
            tries += 1
