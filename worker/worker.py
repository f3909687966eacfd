"""A worker that runs: its parts together, what it says of itself, and how it drains."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from worker.broker import CLOSE_LIMIT_SECONDS
from worker.fleet.fleet import Fleet
from worker.fleet.readings import FleetReadings
from worker.intake.mailbox import Mailboxes
from worker.intake.partitions import Consumers
from worker.operations.gauges import Reading
from worker.operations.health import Condition
from worker.operations.metrics import Metrics
from worker.operations.probes import Pages
from worker.operations.turns_page import turns_page
from worker.replies.in_order import RepliesInOrder
from worker.replies.publisher import Publisher
from worker.sessions.store import SessionStore
from worker.sessions.summaries import Summaries
from worker.settings import Settings
from worker.turns.running import RunningRuns

_log = structlog.get_logger()


@dataclass(frozen=True)
class Worker:
    """A worker that is connected and consumes; it does so until told to drain."""

    mailboxes: Mailboxes
    replies: RepliesInOrder
    summaries: Summaries
    sessions: SessionStore
    publishers: tuple[Publisher, ...]
    consumers: Consumers
    fleet: Fleet
    running: RunningRuns
    fleet_readings: FleetReadings
    metrics: Metrics
    consuming: tuple[asyncio.Task[None], ...]
    """The tasks that bring requests in; the first to end when the worker drains."""
    background: tuple[asyncio.Task[None], ...]
    settings: Settings

    def condition(self) -> Condition:
        """Return how it is now."""
        consumers = self.consumers
        return Condition(
            lanes=self.sessions.alive,
            room=self.sessions.has_room,
            broker=consumers.connected,
            publishing=not any(publisher.blocked for publisher in self.publishers),
            consuming=bool(consumers.wanted) and consumers.consuming == consumers.wanted,
            standing_by=self.fleet.standing_by,
        )

    @property
    def pages(self) -> Pages:
        """What it answers over HTTP beside its health, by path."""
        return {
            "/metrics": self.metrics.page,
            "/turns": lambda: turns_page(self.running, requests=len(self.mailboxes)),
        }

    def reading(self) -> Reading:
        """Return what its gauges show now."""
        begun = self.running.begun
        return Reading(
            condition=self.condition(),
            lanes=self.sessions.lanes_alive,
            executing=self.running.executing,
            waiting=max(len(self.mailboxes) - begun, 0),
            oldest_seconds=max(self.consumers.held_seconds, self.mailboxes.oldest_seconds),
            partitions=self.consumers.partitions,
            fleet=self.fleet_readings.last,
        )

    async def failed(self) -> None:
        """Wait until something that must run for ever has ended, and raise what it ended with."""
        done, _ = await asyncio.wait([*self.consuming, *self.background], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def drain(self) -> None:
        """Give all queues away at once, and let started turns finish within DRAIN_TIMEOUT.

        What waited is delivered to another worker; so is what was started, which finds the stored reply there, or goes
        on there where it was not done in time.
        """
        _log.info("worker_draining", requests=len(self.mailboxes), limit_seconds=self.settings.drain_timeout)
        for task in self.consuming:
            task.cancel()
        # Not for ever: a cancellation that a library swallows must not keep started turns from their time.
        await asyncio.wait(self.consuming, timeout=CLOSE_LIMIT_SECONDS)
        await self.fleet.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout):
                await self.mailboxes.drained()
                await self.replies.drained()
                await self.summaries.drained()
        if len(self.mailboxes):
            _log.warning("worker_drain_timeout", unfinished=len(self.mailboxes), consequence="they run elsewhere")
