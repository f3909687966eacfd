"""A line between a worker and a server that stays cut: at once, or so that nobody is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from yarl import URL


class Cable:
    """A TCP line to a server, until it is unplugged or has been cut; then until it is plugged in again."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._plugged = asyncio.Event()
        self._plugged.set()
        self._cut = False
        self._pipes: set[asyncio.Task[None]] = set()

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
        self._reset()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def unplug(self) -> None:
        """Lose whatever is sent from now on, new connections included, and tell nobody."""
        self._plugged.clear()

    def cut(self) -> None:
        """Reset every connection, and each new one at once."""
        self._cut = True
        self._reset()

    def plug_in(self) -> None:
        """Let new connections through; those from before are reset."""
        self._reset()
        self._cut = False
        self._plugged.set()

    def _reset(self) -> None:
        for pipe in self._pipes:
            pipe.cancel()

    async def _connected(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        writers = [client_writer]
        try:
            await self._plugged.wait()
            if self._cut:
                return
            server_reader, server_writer = await asyncio.open_connection(self._target.host, self._target.port)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_on(client_reader, server_writer))
                directions.create_task(self._pass_on(server_reader, client_writer))
        except (asyncio.CancelledError, OSError):
            pass  # reset: by the test, or by one of the sides
        finally:
            self._pipes.discard(task)
            for writer in writers:
                writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if self._plugged.is_set():
                    writer.write(data)
                    await writer.drain()
        # That one side has hung up does not get through either.
        await self._plugged.wait()
        writer.close()
