"""Changing the partitions of a prefix, on a real RabbitMQ and Postgres, while producers go on publishing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.support.numbered import Numbered, first_of_each
from worker.broker import connected
from worker.cli.topology import _repartition
from worker.fleet.agreement import agree
from worker.intake.topology import Topology, apply
from worker.operations import repartition
from worker.settings import Settings

SESSIONS = [f"s-{number}" for number in range(24)]


@pytest.fixture(autouse=True)
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repartition, "_SETTLED_SECONDS", 0.05)


@asynccontextmanager
async def a_prefix_of(settings: Settings, database: asyncpg.Connection, partitions: int) -> AsyncIterator[Settings]:
    """A prefix as its first worker leaves it, and nothing left of it after the block."""
    settings = settings.model_copy(update={"partitions": partitions})
    await agree(database, settings)
    async with connected(settings.amqp_url, name="test") as broker:
        await apply(broker.amqp, Topology(settings.prefix, partitions))
        try:
            yield settings
        finally:
            channel = await broker.amqp.channel()
            for name in ("gate", "held", "moved"):
                await channel.queue_delete(f"{settings.prefix}.repartition.{name}")
            for name in ("repartition", "repartition.slots"):
                await channel.exchange_delete(f"{settings.prefix}.{name}")
            for number in range(16):
                await channel.queue_delete(f"{settings.prefix}.requests.{number}")
            for queue in Topology(settings.prefix, 1).queues():
                await channel.queue_delete(queue.name)
            for exchange in Topology(settings.prefix, 1).exchanges():
                await channel.exchange_delete(exchange.name)


def queues_of(settings: Settings, partitions: int) -> list[str]:
    return [f"{settings.prefix}.requests.{number}" for number in range(partitions)]


@pytest.mark.parametrize(("before", "after"), [(16, 5), (5, 16), (4, 8)])
async def test_with_producers_at_it_every_session_s_requests_are_in_its_new_queue_in_order(
    settings: Settings, database: asyncpg.Connection, before: int, after: int
) -> None:
    async with (
        a_prefix_of(settings, database, before) as lane,
        Numbered(lane, SESSIONS, pause_seconds=0.02) as producers,
    ):
        await producers.flow(20)
        await _repartition(lane, after, None, dry_run=False)
        await producers.flow(2)
        await producers.stop()
        assert await first_of_each(lane, queues_of(lane, after)) == producers.published
