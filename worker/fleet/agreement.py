"""What all workers of a prefix must share: recorded at the first start, compared at each later one and while they run.

It changes by `teamturn topology repartition` alone, and while it does no worker consumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import asyncpg

import sql
from worker.errors import StartupError
from worker.settings import Settings


class Phase(StrEnum):
    """How far a change of the partitions is."""

    GATHERING = "gathering"
    """The old queues are emptied, into one that all are moved to in order."""
    SPREADING = "spreading"
    """They are empty; what was gathered goes to the new queues. The old ones are never read again."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the partitions that is under way."""

    partitions: int
    prefetch: int
    phase: Phase

    @property
    def command(self) -> str:
        """What goes on with it."""
        return f"teamturn topology repartition --partitions {self.partitions}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is recorded for a prefix."""

    partitions: int
    prefetch: int
    change: Change | None = None

    @classmethod
    def of(cls, record: asyncpg.Record) -> Self | None:
        """Return what a row of Postgres says; None before the first start."""
        if record["partitions"] is None:
            return None
        change = None
        if record["phase"] is not None:
            change = Change(record["to_partitions"], record["to_prefetch"], Phase(record["phase"]))
        return cls(record["partitions"], record["prefetch"], change)

    def require(self, settings: Settings) -> None:
        """Raise StartupError if a worker with these settings can't be one of the fleet."""
        if self.change is not None:
            raise StartupError(
                f"the partitions of prefix {settings.prefix!r} are being changed from {self.partitions} to "
                f"{self.change.partitions}, and no worker may run meanwhile: finish that, {self.change.command}"
            )
        for name, mine, recorded in (
            ("partitions", settings.partitions, self.partitions),
            ("prefetch", settings.prefetch, self.prefetch),
        ):
            if recorded != mine:
                raise StartupError(
                    f"TEAMTURN_{name.upper()} is {mine} here and {recorded} for the other workers of prefix "
                    f"{settings.prefix!r}: set it to {recorded}, or change it for all of them by teamturn topology "
                    "repartition"
                )


async def agree(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Record PARTITIONS and PREFETCH for the prefix (True), or compare them with what is recorded (False).

    With other partitions a session would have two queues; with another prefetch, deliveries that are returned come
    back out of order (measured: prefetch 10, then 4: 4 … 9, 0 … 3). Raises StartupError.
    """
    record = await connection.fetchrow(
        sql.RECORD_FLEET_SETTINGS, settings.prefix, settings.partitions, settings.prefetch
    )
    assert record is not None  # noqa: S101 - for the type checker: the statement returns the row that it writes
    agreement = Agreement.of(record)
    assert agreement is not None  # noqa: S101 - likewise
    agreement.require(settings)
    return bool(record["is_new"])


async def agrees(connection: asyncpg.Connection, settings: Settings) -> bool:
    """Compare them with what is recorded, and record nothing; False if nothing is. Raises StartupError."""
    agreement = await agreement_of(connection, settings.prefix)
    if agreement is not None:
        agreement.require(settings)
    return agreement is not None


async def agreement_of(connection: asyncpg.Connection, prefix: str) -> Agreement | None:
    """Return what is recorded for a prefix; None before its first start."""
    record = await connection.fetchrow(sql.READ_FLEET_SETTINGS, prefix)
    return None if record is None else Agreement.of(record)
