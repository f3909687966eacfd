"""A small HTTP server for probes and scrapes: GET or HEAD, one answer a connection, nothing secret in it.

On all interfaces: who probes a worker is on another machine, or in another network namespace.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import h11

from worker.errors import StartupError

_REQUEST_SECONDS: Final = 5.0
_MOST_REQUEST_BYTES: Final = 16_384
_MOST_CONNECTIONS: Final = 64
"""Who opens more, and says nothing, must not cost the worker its file descriptors."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe is told."""

    status: int
    body: bytes
    content_type: str = "application/json"


Pages = Mapping[str, Callable[[], Answer]]
"""By path, what answers it; asked for each request."""


class PortTaken(StartupError):
    """The port can't be listened on."""


@asynccontextmanager
async def served(pages: Pages, port: int) -> AsyncIterator[int]:
    """Serve pages for the block, and give the port (for 0, one that the system has chosen). Raises PortTaken."""
    try:
        listening = _listening(port)
    except OSError as error:
        raise PortTaken(f"port {port} can't be listened on ({error.strerror})") from None
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: asyncio makes one of it
        connections.add(task)
        try:
            if len(connections) <= _MOST_CONNECTIONS:
                # Cancelled, or cut off by the other side: there is nobody to be told.
                with suppress(OSError, TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(_REQUEST_SECONDS):
                        await _answer(pages, reader, writer)
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, sock=listening)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 can be switched off; what else is wrong the next one says
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


async def _answer(pages: Pages, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_REQUEST_BYTES)
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MOST_REQUEST_BYTES))
    except h11.RemoteProtocolError:
        answer = Answer(400, b"this is not HTTP\n", "text/plain")
    else:
        if not isinstance(event, h11.Request):
            return  # hung up without a word
        answer = _page(pages, event)
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
    writer.write(connection.send(h11.Response(status_code=answer.status, headers=headers)) or b"")
    writer.write(connection.send(h11.Data(data=answer.body)) or b"")
    await writer.drain()


def _page(pages: Pages, request: h11.Request) -> Answer:
    if request.method not in {b"GET", b"HEAD"}:
        return Answer(405, b"GET or HEAD\n", "text/plain")
    path = request.target.partition(b"?")[0].decode("ascii", "replace")
    if path not in pages:
        return Answer(404, f"one of {', '.join(sorted(pages))}\n".encode(), "text/plain")
    return pages[path]()
