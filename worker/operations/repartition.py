"""Changing the partitions of a prefix: nothing is lost, and nothing is reordered within a session.

Producers go on meanwhile, workers are stopped. Postgres says that a change is under way, to what, and in which phase:
it is there that an interrupted one goes on, and each step is safe to repeat.

    gathering   what is published from now on is held, and bound to the old queues no more
                each old queue is moved to one queue; a session is in one of them, in order
    spreading   what was moved goes to the new queues, by the slot of its session; then what was held, while more comes
                the gate is shut: publishes are refused (basic.nack), so that what is held comes to an end
                the rest of it is moved; the gate is opened, and what is published goes to the new queues
                the slots are bound to the new queues themselves, and the detour and surplus queues are deleted

While a binding changes, a request can come into two queues, and what is interrupted moves some again. Both is harmless:
a run_id is executed once, and among the copies of a session's requests the first of each are in order. Why a gate:
without it, a request that came between the last look at what is held and the binding of the new queues would be
overtaken by the next one of its session. Killed while it is shut, publishes are refused until the command is run again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
from aiormq.abc import AbstractChannel, DeliveredMessage

import sql
from worker.broker import BROKER_ERRORS, BrokerConnection, close_quietly, strays_told
from worker.errors import BrokerUnavailable, StartupError, StoreUnavailable
from worker.fleet.agreement import Agreement, Change, Phase, agreement_of
from worker.fleet.view import queue_depth
from worker.intake.delivery import WITHOUT_MESSAGE_ID
from worker.intake.detour import Detour, unbind_slots
from worker.intake.reading import known_ids
from worker.intake.slots import partition_of, slot_of
from worker.intake.topology import Topology
from worker.operations.moving import Mover, Target
from worker.sessions.database import DRIVER_ERRORS

_LEAST_PREFETCH: Final = 256
_SETTLED_SECONDS: Final = 1.0
"""How long after the old queues lost their bindings nothing must come there: a cluster's nodes learn of it in turn."""
_GATE_SETTLED_SECONDS: Final = 0.02
"""The same for what is held, while publishes are refused."""
_CONSUMERS_GONE_SECONDS: Final = 20.0
"""What a worker needs at most to see that it was cut off from Postgres, and RabbitMQ that it is gone."""
_LOOK_AGAIN_SECONDS: Final = 0.2
_FEW: Final = 64
"""So many held requests are moved in some 20 ms."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to."""

    moved: int
    """How often a message was moved: what waited in an old queue twice, what was held once."""
    per_second: float
    gate_seconds: float
    """How long publishes were refused."""


async def planned(
    database: asyncpg.Connection, prefix: str, *, partitions: int, prefetch: int | None
) -> tuple[Agreement, Change]:
    """Return what is recorded for a prefix, and the change that is asked for, or goes on.

    Raises StartupError where there is nothing to change, or another change is under way.
    """
    agreement = await agreement_of(database, prefix)
    if agreement is None:
        raise StartupError(f"no worker of prefix {prefix!r} was started yet: set TEAMTURN_PARTITIONS before the first")
    change = agreement.change
    if change is None:
        change = Change(partitions, prefetch or agreement.prefetch, Phase.GATHERING)
        if (change.partitions, change.prefetch) == (agreement.partitions, agreement.prefetch):
            raise StartupError(
                f"the prefix {prefix!r} has {agreement.partitions} partitions and a prefetch of {agreement.prefetch} "
                "already"
            )
    elif (partitions, prefetch or change.prefetch) != (change.partitions, change.prefetch):
        raise StartupError(
            f"a change to {change.partitions} partitions and a prefetch of {change.prefetch} is under way: finish it "
            f"first, {change.command}"
        )
    return agreement, change


async def live_workers(database: asyncpg.Connection, prefix: str) -> list[str]:
    """Return the workers that are to be stopped first, as host:pid."""
    return [record["worker"] or "?" for record in await database.fetch(sql.LIST_FLEET, prefix)]


@asynccontextmanager
async def locked(database: asyncpg.Connection, prefix: str) -> AsyncIterator[None]:
    """Be the only one who changes the prefix, until the connection is closed.

    Raises StartupError if somebody else does.
    """
    if not await database.fetchval(sql.TAKE_REPARTITION_LOCK, prefix):
        raise StartupError(f"the partitions of prefix {prefix!r} are being changed by another command right now")
    lost = asyncio.Event()
    owner = asyncio.current_task()
    assert owner is not None  # noqa: S101 - for the type checker: this is a coroutine

    def on_loss(_: object) -> None:
        # The lock is gone with it: somebody else may begin where this is.
        lost.set()
        owner.cancel()

    database.add_termination_listener(on_loss)
    try:
        yield
    except asyncio.CancelledError:
        if not lost.is_set():
            raise
        owner.uncancel()
        raise StoreUnavailable("the connection to Postgres was lost: run it again, it goes on where it was") from None
    except DRIVER_ERRORS as error:
        raise StoreUnavailable(f"Postgres does not go on ({error}): run it again, it goes on where it was") from error
    finally:
        database.remove_termination_listener(on_loss)


class Repartition:
    """One change, from where it is to its end."""

    def __init__(
        self,
        database: asyncpg.Connection,
        broker: BrokerConnection,
        prefix: str,
        agreement: Agreement,
        change: Change,
        *,
        report: Callable[[str], None],
    ) -> None:
        self._database = database
        self._broker = broker
        self._prefix = prefix
        self._change = change
        self._is_new = agreement.change is None
        self._report = report
        self._old = Topology(prefix, agreement.partitions)
        self._new = Topology(prefix, change.partitions)
        self._detour = Detour(self._new)
        self._mover = Mover(broker, prefetch=max(agreement.prefetch, _LEAST_PREFETCH), report=report)

    async def waiting(self) -> int:
        """Return how many messages are ready in the queues that are to be moved."""
        names = {self._old.partition(number) for number in range(self._old.partitions)}
        names |= {self._detour.held, self._detour.moved}
        depths = [(await queue_depth(self._broker.amqp, name))[0] for name in sorted(names)]
        return sum(depth or 0 for depth in depths)

    async def run(self) -> Outcome:
        """Do it. Raises StartupError or BrokerUnavailable; run again, it goes on where it was."""
        await self._refuse_live_workers()
        if self._is_new:
            await self._begin()
        with _translated():
            channel = await self._broker.amqp.channel(publisher_confirms=False)
            try:
                underlay = await channel.get_underlay_channel()
                await self._detour.declare(underlay)
                await self._wait_for_consumers()
                if self._change.phase is Phase.GATHERING:
                    await self._gather(underlay)
                    await self._database.execute(sql.BEGIN_SPREADING, self._prefix)
                gate_seconds = await self._spread(underlay)
                await self._clear_away(underlay)
            finally:
                await close_quietly(channel)
        await self._database.execute(sql.FINISH_REPARTITION, self._prefix)
        return Outcome(self._mover.moved, self._mover.rate, gate_seconds)

    async def _refuse_live_workers(self) -> None:
        if live := await live_workers(self._database, self._prefix):
            raise StartupError(f"stop the workers of prefix {self._prefix!r} first: {', '.join(live)}")

    async def _begin(self) -> None:
        await self._database.execute(
            sql.BEGIN_REPARTITION, self._prefix, self._change.partitions, self._change.prefetch
        )
        try:
            # A worker that comes from now on finds the change; one that came before and has not is seen here.
            await self._refuse_live_workers()
        except StartupError:
            await self._database.execute(sql.ABANDON_REPARTITION, self._prefix)
            raise

    async def _wait_for_consumers(self) -> None:
        """Wait until nobody consumes what is to be moved. Raises StartupError if somebody goes on."""
        deadline = time.monotonic() + _CONSUMERS_GONE_SECONDS
        numbers = range(max(self._old.partitions, self._new.partitions))
        for queue in (*map(self._old.partition, numbers), self._detour.held, self._detour.moved):
            while (await queue_depth(self._broker.amqp, queue))[1]:
                if time.monotonic() > deadline:
                    raise StartupError(
                        f"the queue {queue!r} is consumed, by a worker that has lost sight of Postgres or by another "
                        "program: stop it, and run this again"
                    )
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _gather(self, channel: AbstractChannel) -> None:
        """Move what the old queues have to one queue; what is published meanwhile is held."""
        old = {number: self._old.partition(number) for number in range(self._old.partitions)}
        there = {
            number: queue
            for number, queue in old.items()
            if (await queue_depth(self._broker.amqp, queue))[0] is not None
        }
        await self._detour.hold(channel)
        for number in there:
            await unbind_slots(channel, self._old, number)
        unbound = time.monotonic()
        self._report(f"gathering the requests of {len(there)} queues; what is published meanwhile is held")
        for queue in there.values():
            await self._mover.drain(queue, lambda _: self._detour.moved)
        await asyncio.sleep(max(unbound + _SETTLED_SECONDS - time.monotonic(), 0))
        for queue in there.values():
            await self._mover.drain(queue, lambda _: self._detour.moved)

    async def _spread(self, channel: AbstractChannel) -> float:
        """Move what was gathered, then what is held, to the new queues, and have them bound; return the gate's time."""
        self._report(f"spreading them over {self._new.partitions} queues")
        await self._detour.declare_new(channel)
        home = home_in(self._new)
        await self._mover.drain(self._detour.moved, home)
        await self._catch_up(home)
        shut = time.monotonic()
        await self._detour.shut(channel)
        await self._mover.drain(self._detour.held, home)
        await asyncio.sleep(_GATE_SETTLED_SECONDS)
        await self._mover.drain(self._detour.held, home)
        await self._detour.open(channel)
        gate_seconds = time.monotonic() - shut
        await self._detour.leave(channel)
        return gate_seconds

    async def _catch_up(self, home: Target) -> None:
        """Move what is held, until little more comes meanwhile, or no less: producers can be as fast as this is."""
        before = sys.maxsize
        while _FEW < (now := await self._mover.drain(self._detour.held, home)) < before:
            before = now

    async def _clear_away(self, channel: AbstractChannel) -> None:
        """Delete the queues that are not needed any more, once they are empty.

        A worker that had read the old numbers before the change began has bound the old queues again meanwhile, and
        then ended: what these bindings add to the new ones is taken back.
        """
        await self._refuse_live_workers()
        for number in range(min(self._old.partitions, self._new.partitions)):
            await unbind_slots(channel, self._old, number, self._new)
        surplus = [self._old.partition(number) for number in range(self._new.partitions, self._old.partitions)]
        for queue in (*surplus, self._detour.moved, self._detour.held):
            if (await queue_depth(self._broker.amqp, queue))[0] is not None:
                await self._mover.drain(queue, home_in(self._new))
                await channel.queue_delete(queue)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise our errors for the broker's: whatever it is, the command goes on where it was."""
    try:
        with strays_told():
            yield
    except (*BROKER_ERRORS, BrokerUnavailable) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise BrokerUnavailable(
            f"RabbitMQ does not go on ({reason}); nothing is lost: run it again, it goes on where it was"
        ) from error


def home_in(topology: Topology) -> Target:
    """Return what names a message's partition: by its session; what no worker can read goes to the first one."""

    def home(message: DeliveredMessage) -> str:
        properties = message.header.properties
        message_id = None if WITHOUT_MESSAGE_ID in (properties.headers or {}) else properties.message_id
        try:
            session_id = known_ids(message.body, message_id, largest_bytes=sys.maxsize).get("session_id")
        except Exception:  # noqa: BLE001 - as in the intake: an unforeseen message is for a worker to bury
            session_id = None
        return topology.partition(0 if session_id is None else partition_of(slot_of(session_id), topology.partitions))

    return home
