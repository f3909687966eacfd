"""Looking at a fleet from outside: its workers in Postgres, its queues in RabbitMQ."""

from __future__ import annotations

from typing import Any

import asyncpg
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

import sql
from schemas.fleet import FleetPartition, FleetState, FleetWorker, SessionHolder
from worker.broker import close_quietly
from worker.intake.topology import Topology


async def fleet_state(database: asyncpg.Connection, broker: AbstractConnection, topology: Topology) -> FleetState:
    """Return the workers and partitions of a prefix as they are now."""
    live = await database.fetch(sql.LIST_FLEET, topology.prefix)
    recorded = await database.fetchrow(sql.READ_FLEET, topology.prefix)
    owners: dict[int, int] = dict(enumerate((recorded and recorded["owners"]) or ()))
    names = {record["member"]: record["worker"] for record in live}
    workers = [
        _worker(record, [number for number, owner in owners.items() if owner == record["member"]]) for record in live
    ]
    partitions = []
    for number in range(topology.partitions):
        queue = topology.partition(number)
        backlog, consumers = await queue_depth(broker, queue)
        owner = names.get(owners.get(number, 0))
        partitions.append(
            FleetPartition(partition=number, queue=queue, owner=owner, consumers=consumers, backlog=backlog)
        )
    started = [worker.oldest_start for worker in workers if worker.oldest_start is not None]
    return FleetState(
        prefix=topology.prefix,
        workers=workers,
        partitions=partitions,
        unrouted=(await queue_depth(broker, topology.unrouted))[0],
        results=(await queue_depth(broker, topology.results))[0],
        dead=(await queue_depth(broker, topology.dead))[0],
        oldest_unfinished=min(started, default=None),
    )


async def session_holders(database: asyncpg.Connection, session_id: str | None) -> list[SessionHolder]:
    """Return who executes a session's turn, if anybody does; without a session, all whose start was recorded."""
    if session_id is None:
        return [_holder(record, record["session_id"]) for record in await database.fetch(sql.HELD_SESSIONS)]
    return [_holder(record, session_id) for record in await database.fetch(sql.SESSION_HOLDER, session_id)]


def _worker(record: Any, partitions: list[int]) -> FleetWorker:  # noqa: ANN401 - an asyncpg Record
    return FleetWorker(
        worker=record["worker"] or "?",
        address=record["client_addr"],
        since=record["since"],
        partitions=partitions,
        running=record["running"],
        oldest_start=record["oldest"],
    )


def _holder(record: Any, session_id: str) -> SessionHolder:  # noqa: ANN401 - an asyncpg Record
    return SessionHolder(
        session_id=session_id,
        worker=record["worker"] or "?",
        address=record["client_addr"],
        run_id=record["run_id"],
        attempt=record["attempts"],
        since=record["started_at"],
        step=record["step"],
    )


async def queue_depth(broker: AbstractConnection, queue: str) -> tuple[int | None, int | None]:
    """Return how many messages are ready in a queue, and its consumers; (None, None) if it is not there."""
    channel = await broker.channel()
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None, None
    else:
        return declared.message_count, declared.consumer_count
    finally:
        await close_quietly(channel)
