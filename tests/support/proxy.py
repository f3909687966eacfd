"""A TCP proxy between a worker and a server, to cut the line."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from yarl import URL


class Proxy:
    """Passes TCP connections on to a server, until they are cut."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._pipes: set[asyncio.Task[None]] = set()
        self.is_down = False
        """Whether new connections are reset, too."""
        self.refused = 0
        """How many were."""

    @property
    def url(self) -> str:
        """The server's URL by way of this proxy."""
        return str(self._target.with_host("127.0.0.1").with_port(self._port))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection that is open now; new ones get through, unless it is down."""
        for pipe in self._pipes:
            pipe.cancel()

    async def _connected(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            self.refused += 1
            client_writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        writers = [client_writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(self._target.host, self._target.port)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._ask(client_reader, server_writer))
                directions.create_task(_pass_on(server_reader, client_writer))
        except (asyncio.CancelledError, OSError):
            pass  # cut: by the test, or by one of the sides
        finally:
            self._pipes.discard(task)
            for writer in writers:
                writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what the client says."""
        await _pass_on(reader, writer)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
