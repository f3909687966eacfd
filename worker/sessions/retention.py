"""Pruning: what was last used long ago goes for good, in batches, beside running workers.

A session whose turn is being executed is left alone: its lock is only tried. One that has had a turn since it was
listed stays as well, and one of which something is unfinished: a run waits for a human's decision, or was begun or
cancelled of late and waits in a queue, where its worker died. A turn that begins meanwhile waits for the lock, and then
finds no session, as where one was deleted: it begins a new one. Each batch is a transaction of its own, so that
whatever ends this leaves nothing half done, and it can be begun again.

With its receipt goes what answers a run's redelivery: a request that comes again after that is executed again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import asyncpg

import sql
from schemas.ids import SessionType
from schemas.sessions import Pruned

SHORTEST_KEPT: Final = timedelta(days=1)
"""The most that TEAMTURN_TURN_TIMEOUT can be: no attempt that began before then is still under way. It is also far
above the half hour for which RabbitMQ lets a delivery go unacknowledged."""
_RECEIPTS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Old:
    """What is to be pruned: the sessions that all of this is true of."""

    before: int
    """Their last turn was before then: unix seconds, at least SHORTEST_KEPT ago."""
    user_id: str | None = None
    session_type: SessionType | None = None
    target_id: str | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the statements take it."""
        kind = None if self.session_type is None else self.session_type.value
        return self.before, self.user_id, kind, self.target_id

    @property
    def of_anybody(self) -> bool:
        """Whether it is chosen by age alone."""
        return self.arguments == (self.before, None, None, None)


async def count_prunable(connection: asyncpg.Connection, old: Old) -> Pruned:
    """Return what pruning would delete now; nothing is changed."""
    counted = await connection.fetchrow(sql.COUNT_PRUNABLE, *old.arguments)
    assert counted is not None  # noqa: S101 - for the type checker: it selects one row
    return Pruned(**counted, dry_run=True)


async def prune(connection: asyncpg.Connection, old: Old, *, batch: int) -> AsyncGenerator[Pruned, None]:
    """Delete what is old, so many sessions at a time, and tell after each batch what is gone by then.

    After the sessions come receipts without one, and what runs have left that were never answered (of anybody's: it
    does not say whose it is). The connection must be a direct one.
    """
    gone = Pruned()
    after: tuple[Any, Any] = (None, None)
    while page := await connection.fetch(sql.PRUNABLE_SESSIONS, *old.arguments, *after, batch):
        after = (page[-1]["created_at"], page[-1]["session_id"])
        gone += await _pruned(connection, [record["session_id"] for record in page], old.before)
        yield gone
    last: str | None = None
    while True:
        looked = await connection.fetchrow(sql.PRUNE_RECEIPTS, *old.arguments, last, _RECEIPTS_AT_ONCE)
        if looked is None or looked["last_run_id"] is None:
            break
        last = looked["last_run_id"]
        gone += Pruned(receipts=looked["receipts"], bytes=looked["bytes"])
    if old.of_anybody:
        left = await connection.fetchrow(sql.PRUNE_JOURNAL, old.before)
        assert left is not None  # noqa: S101 - for the type checker: it selects one row
        gone += Pruned(unfinished=left["runs"])
    yield gone


async def _pruned(connection: asyncpg.Connection, session_ids: list[str], before: int) -> Pruned:
    # The locks first, in a statement of their own: what is read after that is newer than they are.
    locked = [record["session_id"] for record in await connection.fetch(sql.LOCK_SESSIONS, session_ids)]
    try:
        gone = await connection.fetchrow(sql.PRUNE_SESSIONS, locked, before)
        assert gone is not None  # noqa: S101 - for the type checker: it selects one row
        return Pruned(**gone, held=len(session_ids) - len(locked))
    finally:
        await connection.fetch(sql.UNLOCK_SESSIONS, locked)
