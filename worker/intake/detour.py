"""The detour: exchanges and queues that requests go by while the partitions of a prefix change.

    {prefix}.requests ─ slots ▶ {prefix}.repartition ┬▶ .repartition.held    they wait: while the old queues are emptied
                                (fanout)             ├▶ .repartition.gate    they are refused: for a moment, at the end
                                                     └▶ .repartition.slots   to the new queues, by their slots (direct)
    {prefix}.repartition.moved                                               what the old queues had, in order

Between the two of the left the 256 slots are bound once; what becomes of requests is then changed for all slots by one
binding, and a slot that is bound twice to the same queue is still delivered once. The gate is a classic queue with room
for nothing: it has each publish refused (basic.nack), so that its producer publishes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aiormq.abc import AbstractChannel

from worker.intake.slots import SLOTS, partition_of
from worker.intake.topology import Queue, Topology

_SHUT: Final[dict[str, Any]] = {"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}
"""Measured with RabbitMQ 3.10, 4.0 and 4.3: each publish is refused, mandatory or not, and none is kept."""


@dataclass(frozen=True)
class Detour:
    """The names of a prefix's detour, and what is done with them; each step is safe to repeat."""

    topology: Topology

    @property
    def exchange(self) -> str:
        """The fanout exchange that all slots are bound to."""
        return self.topology.detour

    @property
    def slots(self) -> str:
        """The direct exchange that the new queues are bound to, before they are to the requests."""
        return f"{self.exchange}.slots"

    @property
    def held(self) -> str:
        """The queue of what is published meanwhile."""
        return self.topology.held

    @property
    def moved(self) -> str:
        """The queue of what the old ones had."""
        return f"{self.exchange}.moved"

    @property
    def gate(self) -> str:
        """The queue that refuses everything."""
        return f"{self.exchange}.gate"

    async def declare(self, channel: AbstractChannel) -> None:
        """Declare the exchanges and queues, without a binding."""
        await channel.exchange_declare(exchange=self.exchange, exchange_type="fanout", durable=True)
        await channel.exchange_declare(exchange=self.slots, exchange_type="direct", durable=True)
        # As partitions: what the broker drops, it drops to the dead letters.
        arguments = self.topology.request_queue(0).arguments
        for name in (self.held, self.moved):
            await channel.queue_declare(name, durable=True, arguments=arguments)
        await channel.queue_declare(self.gate, durable=True, arguments=_SHUT)

    async def hold(self, channel: AbstractChannel) -> None:
        """Have what is published held, beside what becomes of it already."""
        await channel.queue_bind(self.held, self.exchange)
        for slot in SLOTS[:-1]:
            await channel.exchange_bind(self.exchange, self.topology.requests, routing_key=slot, nowait=True)
        await channel.exchange_bind(self.exchange, self.topology.requests, routing_key=SLOTS[-1])

    async def declare_new(self, channel: AbstractChannel) -> None:
        """Declare the new partitions, and bind them to the detour."""
        for queue in self._partitions():
            await channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
        await bind_slots(channel, self.topology, self.slots)

    async def shut(self, channel: AbstractChannel) -> None:
        """Refuse what is published, and hold no more."""
        await channel.queue_bind(self.gate, self.exchange)
        await channel.queue_unbind(self.held, self.exchange)

    async def open(self, channel: AbstractChannel) -> None:
        """Have what is published go to the new partitions, and refuse no more."""
        await channel.exchange_bind(self.slots, self.exchange)
        await channel.queue_unbind(self.gate, self.exchange)

    async def leave(self, channel: AbstractChannel) -> None:
        """Bind the new partitions to the requests themselves; then the exchanges are needed no more."""
        await bind_slots(channel, self.topology, self.topology.requests)
        for exchange in (self.exchange, self.slots):
            await channel.exchange_delete(exchange)
        await channel.queue_delete(self.gate)

    def _partitions(self) -> tuple[Queue, ...]:
        return tuple(self.topology.request_queue(number) for number in range(self.topology.partitions))


async def bind_slots(channel: AbstractChannel, topology: Topology, source: str) -> None:
    """Bind each slot of an exchange to its partition; a channel's bindings are made in order."""
    *others, last = [(topology.partition(partition_of(slot, topology.partitions)), slot) for slot in SLOTS]
    for queue, slot in others:
        await channel.queue_bind(queue, source, routing_key=slot, nowait=True)
    queue, slot = last
    await channel.queue_bind(queue, source, routing_key=slot)


async def unbind_slots(
    channel: AbstractChannel, topology: Topology, partition: int, kept: Topology | None = None
) -> None:
    """Take a partition's slots from it, but for those that it has by the topology that is `kept`."""
    for slot in SLOTS:
        is_kept = kept is not None and partition_of(slot, kept.partitions) == partition
        if partition_of(slot, topology.partitions) == partition and not is_kept:
            await channel.queue_unbind(topology.partition(partition), topology.requests, routing_key=slot)
