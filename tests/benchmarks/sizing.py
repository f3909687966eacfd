"""What a turn that waits for its model costs a worker in memory, and Postgres in locks."""

from __future__ import annotations

import asyncio

import asyncpg

from tests.benchmarks.copies import copy_session, settled_rows
from tests.benchmarks.figures import Finding, Measured
from tests.benchmarks.model_stub import URL_VARIABLE
from tests.benchmarks.program import Program
from tests.benchmarks.stage import Stage
from tests.benchmarks.traffic import Traffic, request, requests
from tests.support.waiting import eventually

_ANSWER_SECONDS = 600
"""Longer than all of it: the turns are under way as long as they are looked at."""
_SETTLE_SECONDS = 3.0
_LOCKS = """
    select count(*) from pg_locks
    where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
"""


async def memory_per_turn(stage: Stage) -> list[Finding]:
    """Turns of a Team whose model does not answer, ever more of them at once; the last ones in long sessions."""
    few, many = stage.plan.waiting_turns
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        stage.program("model_stub", settings, str(_ANSWER_SECONDS)) as stub,
        stage.program("model_stub", settings, "0") as quick_stub,
    ):
        quick = {URL_VARIABLE: await quick_stub.said(r"serving (\S+) ")}
        async with stage.worker(settings, "tests.benchmarks.model_team:asked", **quick) as worker:
            await worker.consumes()
            await traffic.lone(request("asked", "model", "a question"))
        long = [f"long-{number}" for number in range(stage.plan.long_sessions)]
        async with settled_rows(settings) as database:
            for session_id in long:
                await copy_session(database, "model", session_id, runs=stage.plan.long_session)
        environment = {
            "TEAMTURN_MAX_CONCURRENT_TURNS": str(many + len(long)),
            "TEAMTURN_DRAIN_TIMEOUT": "0",
            URL_VARIABLE: await stub.said(r"serving (\S+) "),
        }
        async with stage.worker(settings, "tests.benchmarks.model_team:asked", **environment) as worker:
            await worker.consumes()
            looking = await asyncpg.connect(settings.postgres_url.get_secret_value())
            try:
                readings = [await _reading(worker, looking, 0)]
                for so_far, number in ((0, few), (few, many)):
                    load = requests("asked", number - so_far, sessions=number - so_far, name=f"s-{number}")
                    await traffic.publish(load)
                    readings.append(await _reading(worker, looking, number))
                # Half of them first: what is loaded for the first history of all is loaded then.
                for so_far, number in ((0, len(long) // 2), (len(long) // 2, len(long))):
                    await traffic.publish([request("asked", one, "a question") for one in long[so_far:number]])
                    readings.append(await _reading(worker, looking, many + number))
            finally:
                await looking.close()
    (idle, base_locks), (first, _), (second, locks), (third, _), (last, _) = readings
    each = (second - first) * 1024 / (many - few)
    details = {
        "idle_mb": round(idle, 1),
        f"mb_with_{few}": round(first, 1),
        f"mb_with_{many}": round(second, 1),
        "locks_per_turn": round((locks - base_locks) / many, 2),
        "kib_in_long_sessions": round((last - third) * 1024 / (len(long) - len(long) // 2), 1),
        "runs_of_long_sessions": stage.plan.long_session,
    }
    return [Finding("memory_per_turn", each, [Measured("teamturn", "KiB", [each])], details)]


async def _reading(worker: Program, database: asyncpg.Connection, turns: int) -> tuple[float, int]:
    """Wait until so many turns are under way and the worker rests; return its memory in MiB, and the advisory locks."""

    async def are_under_way() -> bool:
        return int(await database.fetchval(_LOCKS)) > turns

    await eventually(are_under_way, seconds=60)
    used = worker.cpu_seconds()
    while True:
        await asyncio.sleep(_SETTLE_SECONDS)
        now = worker.cpu_seconds()
        if now - used < _SETTLE_SECONDS / 10:
            return worker.memory_mb(), int(await database.fetchval(_LOCKS))
        used = now
