"""What a program asks Postgres, counted on the wire."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from yarl import URL

_ASKS: Final = frozenset({b"Q", b"E"})
"""Of the frontend's messages, those that have a statement run: a simple query, or the execution of a prepared one.
See "Message Formats" in PostgreSQL's manual."""


class WireTap:
    """A line to Postgres that counts the statements which go over it."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._open: set[asyncio.Task[None]] = set()
        self.statements = 0

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
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        server_reader, server_writer = await asyncio.open_connection(self._target.host, self._target.port)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._ask(reader, server_writer))
                directions.create_task(_answer(server_reader, writer))
        finally:
            self._open.discard(task)
            writer.transport.abort()
            server_writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            # What begins a connection has no type: offers of encryption, which are refused here, and the startup.
            while (size := await reader.readexactly(4)) == b"\x00\x00\x00\x08":
                writer.write(size + await reader.readexactly(4))
            writer.write(size + await reader.readexactly(int.from_bytes(size) - 4))
            while True:
                kind, size = await reader.readexactly(1), await reader.readexactly(4)
                self.statements += kind in _ASKS
                writer.write(kind + size + await reader.readexactly(int.from_bytes(size) - 4))
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
