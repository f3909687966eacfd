"""What people and programs see of a fleet: its workers, its partitions, and who holds a session."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel


class FleetWorker(BaseModel):
    """A live worker."""

    worker: str
    """host:pid"""
    address: str | None
    since: datetime | None
    partitions: list[int]
    running: int
    """Turns that it has started and not finished; those that lasted no moment are not counted."""
    oldest_start: datetime | None
    """When the oldest of them was started."""


class FleetPartition(BaseModel):
    """A request queue."""

    partition: int
    queue: str
    owner: str | None
    """The worker that is to consume it."""
    consumers: int | None
    """How many consumers the broker counts, standing by included; None: there is no such queue."""
    backlog: int | None
    """Requests that wait in the queue; those a worker holds are not among them."""


class FleetState(BaseModel):
    """A fleet as it is now."""

    prefix: str
    workers: list[FleetWorker]
    partitions: list[FleetPartition]
    unrouted: int | None
    results: int | None
    dead: int | None
    oldest_unfinished: datetime | None
    """When the oldest turn that is unfinished was started."""


class SessionHolder(BaseModel):
    """Who executes a session's turn."""

    session_id: str
    worker: str
    address: str | None
    run_id: str | None
    """None: its start was not recorded yet."""
    attempt: int | None
    since: datetime | None
    step: str | None
    """The step that was recorded last, begun or ended; None: none was yet."""
