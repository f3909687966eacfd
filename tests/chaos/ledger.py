"""The evidence, gathered once nothing moves any more."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Final

from aio_pika.abc import AbstractConnection
from pydantic import JsonValue

from tests.chaos.evidence import Evidence
from tests.chaos.scene import Scene
from tests.chaos.script import logical_step
from worker.broker import close_quietly, connected
from worker.intake.topology import Topology

_STORED: Final = """
    select session_id, array_agg(run_id order by run_index) as runs
    from ai.agno_runs where parent_run_id is null group by session_id
"""
_STRAY_UNLOCK: Final = "you don't own a lock"
"""What Postgres says to an unlock of what is not locked."""
_CANCELLED: Final = """
    select run_id, session_id, user_id, extract(epoch from min(at))::float8 as at
    from chaos.cancelled group by run_id, session_id, user_id
"""
_RECORDED: Final = "select run_id, step, extract(epoch from at)::float8 as at from chaos.recorded"


async def gather(scene: Scene) -> Evidence:
    """Ask Postgres and RabbitMQ what there is, and put it beside what was seen meanwhile."""
    async with scene.database() as database:
        stored = await database.fetch(_STORED)
        times = await database.fetch("select run_id, count(*) as times from chaos.stored group by run_id")
        receipts = await database.fetch("select run_id, reply from ai.receipts")
        states = await database.fetch(
            "select session_id, session_data -> 'session_state' as state from ai.agno_sessions"
        )
        noted = await database.fetch(_RECORDED)
        cancelled = await database.fetch(_CANCELLED)
    async with connected(scene.settings.amqp_url, name="chaos") as broker:
        left = await _left(broker.amqp, Topology(prefix=scene.settings.prefix, partitions=scene.settings.partitions))
    recorded: dict[tuple[str, str], float] = {}
    for row in noted:
        key = (row["run_id"], logical_step(row["step"]))
        recorded[key] = min(row["at"], recorded.get(key, row["at"]))
    return Evidence(
        published=scene.load.published(),
        asked={run_id: request.asked for run_id, request in scene.load.requests.items()},
        cancels=scene.load.moves.cancels,
        events=scene.watcher.events,
        upsets=scene.upsets.times,
        cancelled={
            row["run_id"]: row["at"]
            for row in cancelled
            if (request := scene.load.requests.get(row["run_id"])) is not None
            and (row["session_id"], row["user_id"]) == (request.session.session_id, request.session.user_id)
        },
        replies=scene.load.replies,
        calls=scene.stub.calls,
        freezes=scene.crew.freezes,
        stored={row["session_id"]: list(row["runs"]) for row in stored},
        stored_times={row["run_id"]: row["times"] for row in times},
        receipts={row["run_id"]: bytes(row["reply"]) for row in receipts},
        states={row["session_id"]: _counts(row["state"]) for row in states},
        recorded=recorded,
        unanswered=scene.load.behind(),
        stray_unlocks=(await asyncio.to_thread(scene.postgres_log.read_text)).count(_STRAY_UNLOCK),
        left=left,
    )


def _counts(state: str | None) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = json.loads(state or "{}")
    return found


async def _left(broker: AbstractConnection, topology: Topology) -> dict[str, int]:
    left: dict[str, int] = defaultdict(int)
    partitions = [topology.partition(number) for number in range(topology.partitions)]
    for queue in (*partitions, topology.unrouted, topology.control):
        channel = await broker.channel()
        try:
            number = (await channel.declare_queue(queue, passive=True)).declaration_result.message_count
        finally:
            await close_quietly(channel)
        if number:
            left[queue] = number
    return dict(left)
