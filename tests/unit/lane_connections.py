"""A lane whose Postgres is told what to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import asyncpg

import sql
from worker.sessions.lanes import LaneConnection, Statement

Answer = Callable[[str, list[str]], None]
"""Called with a statement's text and rows before it is answered; raises what Postgres would."""


class FakePostgres:
    """A connection that answers each row with itself, unless told otherwise; `hold` keeps its answers back."""

    def __init__(self, before: Answer | None = None) -> None:
        self.batches: list[list[str]] = []
        """The rows of each statement but pings."""
        self.texts: list[str] = []
        self.under_way = 0
        self.closed = False
        self.read_only = False
        self.before = before
        self._go = asyncio.Event()
        self._go.set()
        self._died = asyncio.Event()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def die(self) -> None:
        """Lose the connection: what is under way fails."""
        self.closed = True
        self._died.set()

    async def fetch(self, text: str, *arguments: Any) -> list[Any]:
        assert self.under_way == 0, "a connection takes one statement at a time"
        if self.closed:
            raise asyncpg.InterfaceError("connection is closed")
        rows: list[str] = list(arguments[0]) if arguments else []
        self.texts.append(text)
        if text != sql.PING:
            self.batches.append(rows)
        self.under_way += 1
        try:
            await self._held()
            if self.before is not None:
                self.before(text, rows)
        finally:
            self.under_way -= 1
        return [{"read_only": self.read_only}] if text == sql.PING else [f"{row}!" for row in rows]

    async def _held(self) -> None:
        await asyncio.sleep(0)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._go, self._died)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.closed:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.die()


def statement(name: str = "echo") -> Statement[str, str]:
    """A statement whose rows are texts, each of which gets itself with an exclamation mark."""
    return Statement(
        name=name,
        text=name,
        arguments=lambda rows: [list(rows)],
        results=lambda _, records: cast("Sequence[str]", records),
    )


ECHO = statement()


@asynccontextmanager
async def running(postgres: FakePostgres) -> AsyncIterator[LaneConnection]:
    """A lane's connection that runs until the end of the block."""
    lane = LaneConnection(cast("asyncpg.Connection", postgres))
    task = asyncio.create_task(lane.run())
    try:
        yield lane
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def settled(*waiting: asyncio.Future[str], seconds: float = 5) -> list[str | BaseException]:
    """What each caller gets; fails if one is never answered."""
    _, pending = await asyncio.wait(waiting, timeout=seconds)
    for future in pending:
        future.cancel()
    # Before anything is asserted: an error that nobody asks for is logged whenever the garbage is collected.
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert not pending, f"{len(pending)} of {len(waiting)} callers are never answered"
    return results
