"""How many turns are under way at once in one worker, and what they cost it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from tests.benchmarks.executors import SECONDS_VARIABLE
from tests.benchmarks.figures import Finding, Measured
from tests.benchmarks.stage import Stage
from tests.benchmarks.traffic import Request, Traffic, requests
from worker.settings import Settings

_PREFETCH = 768
"""A partition's share of the sessions, and room for chance, which gives some partitions more than others."""
_CONNECTIONS = """
    select count(*) from pg_stat_activity where datname = current_database() and pid != pg_backend_pid()
"""
_EACH = 2
"""Requests of a session."""


async def in_flight(stage: Stage) -> list[Finding]:
    """Sessions with two requests each, whose turns sleep."""
    plan = stage.plan
    load = requests("asleep", plan.in_flight * _EACH, sessions=plan.in_flight)
    environment = {
        "TEAMTURN_MAX_CONCURRENT_TURNS": str(plan.in_flight),
        SECONDS_VARIABLE: str(plan.in_flight_seconds),
    }
    async with stage.stand(prefetch=_PREFETCH) as settings, Traffic(settings) as traffic:
        async with stage.worker(settings, **environment) as worker:
            await worker.consumes()
            idle = worker.peak_memory_mb()
        await traffic.publish(load)
        async with stage.worker(settings, **environment) as worker, _connections(settings) as connections:
            await traffic.replied(len(load), worker)
            memory = worker.peak_memory_mb()
        traffic.check(load)
    _check_order(load, traffic)
    counts = [json.loads(reply.body)["content"] for reply in traffic.replies]
    at_once = max(counts)
    return [
        Finding(
            "in_flight",
            at_once,
            [Measured("teamturn", "turns at once", [at_once])],
            {
                "connections": max(connections),
                "peak_memory_mb": round(memory, 1),
                "kib_a_turn": round((memory - idle) * 1024 / at_once, 1),
                "turns": len(load),
                "repeated_replies": traffic.repeated,
                "seconds": round(traffic.replies[-1].at - traffic.replies[0].at + plan.in_flight_seconds, 1),
                "TEAMTURN_PREFETCH": _PREFETCH,
                "TEAMTURN_MAX_CONCURRENT_TURNS": plan.in_flight,
            },
        )
    ]


def _check_order(load: Sequence[Request], traffic: Traffic) -> None:
    """Raise RuntimeError if a session's requests were answered in another order than they were published."""
    session_of = {one.run_id: one.session_id for one in load}
    published, answered = defaultdict(list), defaultdict(list)
    for one in load:
        published[one.session_id].append(one.run_id)
    for reply in traffic.replies:
        answered[session_of[reply.run_id]].append(reply.run_id)
    if published != answered:
        raise RuntimeError("a session's requests were answered out of order")


@asynccontextmanager
async def _connections(settings: Settings) -> AsyncIterator[list[int]]:
    """How many connections the worker has to Postgres, looked at again and again during the block."""
    counts = [0]
    database = await asyncpg.connect(settings.postgres_url.get_secret_value())

    async def look() -> None:
        while True:
            counts.append(await database.fetchval(_CONNECTIONS))
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look())
    try:
        yield counts
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await database.close()
