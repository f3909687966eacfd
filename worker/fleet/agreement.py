"""What all workers of a prefix must share: recorded at the first start, compared at each later one."""

from __future__ import annotations

import asyncpg

import sql
from worker.errors import StartupError
from worker.settings import Settings


async def agree(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Record PARTITIONS and PREFETCH for the prefix (True), or compare them with what is recorded (False).

    With other partitions a session would have two queues; with another prefetch, deliveries that are returned come
    back out of order (measured: prefetch 10, then 4: 4 … 9, 0 … 3). Raises StartupError.
    """
    record = await connection.fetchrow(
        sql.RECORD_FLEET_SETTINGS, settings.prefix, settings.partitions, settings.prefetch
    )
    _compare(record, settings)
    return record is not None and bool(record["is_new"])


async def agrees(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Compare them with what is recorded, and record nothing; False if nothing is. Raises StartupError."""
    record = await connection.fetchrow(sql.READ_FLEET_SETTINGS, settings.prefix)
    _compare(record, settings)
    return record is not None


def _compare(record: asyncpg.Record | None, settings: Settings) -> None:
    for name, mine in (("partitions", settings.partitions), ("prefetch", settings.prefetch)):
        recorded = record[name] if record is not None else mine
        if recorded != mine:
            raise StartupError(
                f"TEAMTURN_{name.upper()} is {mine} here and {recorded} for the other workers of prefix "
                f"{settings.prefix!r}: set it to {recorded}"
            )
