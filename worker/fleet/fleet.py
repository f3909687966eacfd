"""The fleet's rule in one worker: be a member while you consume, and consume what is yours.

    join      the membership lock, on the first lane; the others are notified
    assign    the partitions that are ours, from the members and what was assigned before
    hand over the channels of what is no longer ours are closed at once, turns running or not
    consume   what is ours, each over a channel of its own

A hand-over waits for nothing. RabbitMQ returns what is unacknowledged to the head of the queue, in order; a turn that
had started goes on here, under its session's lock, and commits; the new owner meets its request at the head of the
session's mailbox, waits for the lock, finds the finished run, and replies. Who dies when:

    killed    its lane and its connection to RabbitMQ are gone at once: so are its membership and its consumers
    frozen    Postgres ends the lane after 15 s, RabbitMQ the consumers after about as long
    cut off   from RabbitMQ: it gives its membership up. From Postgres: its lane does not answer a ping, and it closes
              its channels; Postgres ends its membership after 15 s at the latest. Back again, it waits a moment before
              it joins: first every worker takes the sessions again whose turns go on
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

import structlog

from worker.errors import StoreUnavailable
from worker.fleet.membership import Membership
from worker.intake.partitions import Consumers
from worker.intake.topology import Topology
from worker.patience import answered_within
from worker.sessions.store import SessionStore

_POLL_SECONDS: Final = 1.0
"""Notifications make a change quick; this makes it certain."""
_UNREACHABLE_SECONDS: Final = 2.0
"""How long a worker that can't consume stays a member: a restarted broker is back sooner than partitions move."""
_LEAVE_SECONDS: Final = 2.0
_BACK_SECONDS: Final = 2.0
"""How long a worker that was cut off from Postgres is back before it takes part again: by then all that were cut
off with it have taken the sessions again whose turns go on (a lane is tried twice a second, a claim once), and nobody
is given what another worker is still at."""
_ANSWER_SECONDS: Final = 10.0
"""Past the lanes' lock_timeout, by which a statement that waits for somebody else's row has ended."""

_log = structlog.get_logger()


class Fleet:
    """Keeps what this worker consumes to what is its own."""

    def __init__(
        self, membership: Membership, consumers: Consumers, topology: Topology, sessions: SessionStore
    ) -> None:
        """`sessions` are told how many members the fleet has; without room for them nothing is consumed."""
        self._sessions = sessions
        self._membership = membership
        self._consumers = consumers
        self._topology = topology
        self._changed = asyncio.Event()
        self._unreachable_since: float | None = None
        self._standing_by: bool | None = None
        membership.listen(self._changed.set)
        consumers.listen(self._changed.set)

    @property
    def standing_by(self) -> bool:
        """Whether others have all partitions."""
        return self._standing_by is True

    async def run(self) -> None:
        """Follow the fleet, until the task is cancelled."""
        while True:
            self._changed.clear()
            await self._settle()
            with suppress(TimeoutError):
                back_in = self._back_in()
                async with asyncio.timeout(min(back_in, _POLL_SECONDS) if back_in > 0 else _POLL_SECONDS):
                    await self._changed.wait()

    async def leave(self) -> None:
        """Close every channel at once and give the membership up; `run` must have ended."""
        self._consumers.want(frozenset())
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._membership.leave()

    async def _settle(self) -> None:
        try:
            if not self._can_consume():
                self._consumers.want(frozenset())
                await self._membership.leave()
            elif self._back_in() > 0:
                # Not a member yet: nobody would consume what others gave to it. What it consumes it goes on with.
                self._sessions.first_lane.connection()
            else:
                await self._take_share()
        except (StoreUnavailable, TimeoutError) as error:
            # Without a lane no request could be claimed, and without a membership the partitions are others'.
            self._give_up(str(error) or "Postgres does not answer")

    async def _take_share(self) -> None:
        # A lane can be cut off in the middle of a statement; its own limit is that of the longest one.
        async with answered_within(_ANSWER_SECONDS):
            owned = await self._membership.owned()
        self._sessions.lock_budget.share_with(self._membership.size)
        self._consume(self._queues(owned))

    def _back_in(self) -> float:
        """Return in how many seconds the worker takes part again, if it was cut off from Postgres."""
        return self._sessions.connected_since + _BACK_SECONDS - time.monotonic()

    def _give_up(self, reason: str) -> None:
        if self._consumers.wanted:
            _log.warning("partitions_given_up", reason=reason)
        self._standing_by = None
        self._consumers.want(frozenset())

    def _consume(self, queues: frozenset[str]) -> None:
        if not self._sessions.has_room:
            # They stay ours, for nobody else could store their turns; what has started is stored as soon as it can be.
            self._give_up("Postgres's disk is full")
            return
        if not queues and self._standing_by is not True:
            _log.info("worker_standing_by", reason="others have all partitions", members=self._membership.size)
        self._standing_by = not queues
        self._consumers.want(queues)

    def _can_consume(self) -> bool:
        if self._consumers.connected:
            self._unreachable_since = None
            return True
        now = time.monotonic()
        self._unreachable_since = self._unreachable_since or now
        return now - self._unreachable_since < _UNREACHABLE_SECONDS

    def _queues(self, partitions: frozenset[int]) -> frozenset[str]:
        queues = {self._topology.partition(number) for number in partitions}
        # Requests without a slot go with partition 0.
        return frozenset(queues | {self._topology.unrouted} if 0 in partitions else queues)
