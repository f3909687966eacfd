"""What a program asks Postgres, counted on the wire."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from typing_extensions import override

from tests.support.proxy import Proxy

_ASKS: Final = frozenset({b"Q", b"E"})
"""Of the frontend's messages, those that have a statement run: a simple query, or the execution of a prepared one.
See "Message Formats" in PostgreSQL's manual."""


class WireTap(Proxy):
    """A line to Postgres that counts the statements which go over it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.statements = 0

    @override
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
