"""Membership: a worker is a member of its fleet as long as its first lane holds an advisory lock that names it.

The list of live workers is therefore pg_locks: a killed worker leaves it at once, a frozen or cut-off one by
Postgres's own hand, and there is no heartbeat to write or to miss. Who consumes which partition is recorded beside it,
so that whoever joins or outlives somebody leaves the rest as it is. Workers that disagree for a moment do no harm: a
queue has one active consumer, and a session one lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

import sql
from worker.errors import StoreUnavailable
from worker.fleet.agreement import Agreement
from worker.fleet.assignment import Member, assign
from worker.sessions.lanes import Lane, LaneConnection, Statement
from worker.settings import Settings

_CHANNEL: Final = "teamturn_fleet"
_MOST_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class FleetView:
    """The members of a fleet, and the assignment that is recorded for it."""

    members: tuple[Member, ...]
    version: int | None
    owners: Mapping[int, Member]
    agreement: Agreement | None
    """What all of them share; None before the first start."""


@dataclass(frozen=True, slots=True)
class _Record:
    prefix: str
    seen: int | None
    owners: list[Member]


def _view(records: Sequence[asyncpg.Record]) -> FleetView:
    (record,) = records
    owners = dict(enumerate(record["owners"] or ()))
    return FleetView(tuple(record["members"]), record["version"], owners, Agreement.of(record))


_JOIN: Final = Statement[tuple[str, Member], bool](
    name="join_fleet",
    text=sql.JOIN_FLEET,
    arguments=lambda rows: rows[0],
    results=lambda _, records: [bool(records[0]["joined"])],
)
_LEAVE: Final = Statement[tuple[str, Member], bool](
    name="leave_fleet",
    text=sql.LEAVE_FLEET,
    arguments=lambda rows: rows[0],
    results=lambda _, records: [bool(records[0]["left"])],
)
_READ: Final = Statement[str, FleetView](
    name="read_fleet",
    text=sql.READ_FLEET,
    arguments=lambda prefixes: prefixes,
    results=lambda _, records: [_view(records)],
)
_RECORD: Final = Statement[_Record, bool](
    name="record_assignment",
    text=sql.RECORD_ASSIGNMENT,
    arguments=lambda rows: [rows[0].prefix, rows[0].seen, rows[0].owners],
    results=lambda _, records: [bool(records[0]["recorded"])],
)


class Membership:
    """This worker's place in the fleet of its prefix. Used by one task: its statements are not batched."""

    def __init__(self, lane: Lane, settings: Settings) -> None:
        self._lane = lane
        self._settings = settings
        self._prefix = settings.prefix
        self._partitions = settings.partitions
        self._member = _new_member()
        self._joined: LaneConnection | None = None
        self.size = 1
        """How many members the fleet had when it was last looked at."""

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever somebody joins or leaves. To be called before the lane is opened."""
        self._lane.listen(_CHANNEL, changed)

    async def owned(self) -> frozenset[int]:
        """Join, if that is still to do, and return the partitions that are this worker's to consume.

        Raises StoreUnavailable if there is no lane: then none is. Raises StartupError if the fleet's partitions or
        prefetch are others by now, or about to be: a worker that was cut off may have missed that it was to stop.
        """
        connection = await self._join()
        for _ in range(_MOST_TRIES):
            view = await connection.submit(_READ, self._prefix)
            if view.agreement is not None:
                view.agreement.require(self._settings)
            self.size = max(len(view.members), 1)
            owners = assign(self._partitions, view.members, view.owners)
            if owners == view.owners or await self._recorded(connection, view, owners):
                return frozenset(partition for partition, owner in owners.items() if owner == self._member)
        raise StoreUnavailable("others kept changing the fleet's assignment")

    async def leave(self) -> None:
        """Give the membership up, if there is one. Raises StoreUnavailable if that takes Postgres's own hand."""
        connection, self._joined = self._joined, None
        if connection is not None:
            await connection.submit(_LEAVE, (self._prefix, self._member))

    async def _join(self) -> LaneConnection:
        connection = self._lane.connection()
        while connection is not self._joined:
            if await connection.submit(_JOIN, (self._prefix, self._member)):
                self._joined = connection
            else:
                # Somebody else's number, or our own on a connection that Postgres has not given up yet.
                self._member = _new_member()
        return connection

    async def _recorded(self, connection: LaneConnection, view: FleetView, owners: Mapping[int, Member]) -> bool:
        row = _Record(self._prefix, view.version, [owners[partition] for partition in range(self._partitions)])
        return await connection.submit(_RECORD, row)


def _new_member() -> Member:
    return secrets.randbelow(2**31 - 1) + 1
