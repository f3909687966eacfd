"""The lines between a worker and a server: watched, held back, slowed down and cut, one connection at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self

from yarl import URL

_OPENING_BYTES: Final = 8_192
_TAIL_BYTES: Final = 512
_CHUNK_BYTES: Final = 65_536


class Towards(Enum):
    """A direction."""

    SERVER = auto()
    WORKER = auto()


@dataclass(eq=False)
class Connection:
    """One connection that passes through."""

    task: asyncio.Task[None]
    opening: bytes = b""
    """What the worker said first. RabbitMQ is told a connection's name there, Postgres an application's."""
    tails: dict[Towards, bytes] = field(default_factory=lambda: dict.fromkeys(Towards, b""))

    def cut(self) -> None:
        """Reset it, on both sides; what was held back is lost."""
        self.task.cancel()


@dataclass(eq=False)
class Hold:
    """What a worker says on some connections is kept back, until it is let go on, or lost with its connections."""

    line: Line
    name: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def covers(self, connection: Connection) -> bool:
        """Whether it is one of these connections."""
        return not self.ended.is_set() and self.name in connection.opening

    def drop(self) -> None:
        """Lose it: the connections are cut."""
        for connection in self.line.connections:
            if self.covers(connection):
                connection.cut()


@dataclass(eq=False)
class _Watch:
    words: bytes
    towards: Towards
    seen: asyncio.Event = field(default_factory=asyncio.Event)


class Line:
    """Passes one worker's TCP connections on to a server."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._holds: list[Hold] = []
        self._watches: list[_Watch] = []
        self.connections: list[Connection] = []
        self.delay_seconds = 0.0
        """How long everything takes that is sent: a network that is slow, and has little room."""

    @property
    def url(self) -> str:
        """The server's URL by way of this line."""
        return str(self._target.with_host("127.0.0.1").with_port(self._port))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        tasks = [connection.task for connection in self.connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut_one(self, rng: random.Random) -> bool:
        """Cut one of the connections, if there is any."""
        if not self.connections:
            return False
        rng.choice(self.connections).cut()
        return True

    @contextmanager
    def holding(self, name: bytes = b"") -> Iterator[Hold]:
        """Keep back what the worker says in this block, on connections in whose opening the name is."""
        hold = Hold(self, name)
        self._holds.append(hold)
        try:
            yield hold
        finally:
            self._holds.remove(hold)
            hold.ended.set()

    @contextmanager
    def watching(self, words: str, towards: Towards) -> Iterator[asyncio.Event]:
        """Set an event when these words pass in this block, whether or not they are held back."""
        watch = _Watch(words.encode(), towards)
        self._watches.append(watch)
        try:
            yield watch.seen
        finally:
            self._watches.remove(watch)

    async def _connected(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(task)
        self.connections.append(connection)
        writers = [client_writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(self._target.host, self._target.port)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_on(connection, client_reader, server_writer, Towards.SERVER))
                directions.create_task(self._pass_on(connection, server_reader, client_writer, Towards.WORKER))
        except (asyncio.CancelledError, OSError):
            pass  # cut: by a fault, or by one of the sides
        finally:
            self.connections.remove(connection)
            for writer in writers:
                writer.transport.abort()

    async def _pass_on(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards: Towards
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if towards is Towards.SERVER and len(connection.opening) < _OPENING_BYTES:
                    connection.opening += data
                if self._watches:
                    self._look(connection, data, towards)
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if towards is Towards.SERVER:
                    for hold in [hold for hold in self._holds if hold.covers(connection)]:
                        await hold.ended.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def _look(self, connection: Connection, data: bytes, towards: Towards) -> None:
        # Words can come in two pieces.
        text = connection.tails[towards] + data
        connection.tails[towards] = text[-_TAIL_BYTES:]
        for watch in self._watches:
            if watch.towards is towards and watch.words in text:
                watch.seen.set()
