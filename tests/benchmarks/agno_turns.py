"""The same Agno Team with an instant model: as a hand-written consumer runs it, and as a worker does."""

from __future__ import annotations

import json
import time
from typing import Final

from tests.benchmarks.copies import copy_session, settled_rows
from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.lone import alternating
from tests.benchmarks.paces import Side, compared, cpu_of, rate_of
from tests.benchmarks.program import Program
from tests.benchmarks.stage import Stage, peers_queue
from tests.benchmarks.traffic import Traffic, request, requests
from worker.settings import Settings

_TEAMS = "tests.benchmarks.agno_team:capital"
DRIVER: Final = "asyncpg"
"""Faster than psycopg, 58 to 80 turns/s beside 49 to 59, whatever the prefetch (measured, on a busy machine)."""
PREFETCH: Final = 32
"""The best of 8, 16 and 32: SQLAlchemy's pool has 15 connections at most."""
_SESSIONS = 100
_BURST: Final = 5


async def vs_agno_turns(stage: Stage) -> list[Finding]:
    """Turns/s over a hundred sessions."""
    plan = stage.plan
    sides = (
        Side(
            "teamturn",
            lambda settings: stage.worker(settings, _TEAMS),
            lambda: requests("capital", plan.agno_team_turns, sessions=_SESSIONS),
            is_peer=False,
        ),
        Side(
            "agno",
            lambda settings: _agno(stage, settings),
            lambda: requests("capital", plan.agno_turns, sessions=_SESSIONS),
            empty_database=True,
        ),
    )
    paces = await compared(stage, sides, plan.agno_rounds)
    ours, theirs = (rate_of(side.name, paces) for side in sides)
    return [ratio("vs_agno_turns", ours, theirs, *(cpu_of(side.name, paces) for side in sides))]


async def vs_agno_flat_1000(stage: Stage) -> list[Finding]:
    """Lone requests in turn, each in a session of 1,000 runs."""
    plan = stage.plan
    async with (
        stage.stand() as mine,
        stage.stand(empty=True) as others,
        Traffic(mine) as to_worker,
        Traffic(others) as to_peer,
        stage.worker(mine, _TEAMS) as worker,
        _agno(stage, others) as peer,
    ):
        await worker.consumes()
        await peer.consumes()
        queue = peers_queue(others)
        await to_worker.lone(request("capital", "model", _QUESTION))
        await to_peer.lone(request("capital", "model", _QUESTION), queue=queue)
        for settings in (mine, others):
            await _lengthen(settings, plan.agno_session)
        ours, theirs = await alternating(
            lambda _: to_worker.lone(request("capital", "long", _QUESTION)),
            lambda _: to_peer.lone(request("capital", "long", _QUESTION), queue=queue),
            requests=plan.agno_lone_requests,
        )
    return [ratio("vs_agno_flat_1000", Measured("agno", "ms", theirs), Measured("teamturn", "ms", ours))]


async def vs_agno_handoff(stage: Stage) -> list[Finding]:
    """Five runs of one session that are submitted at once, with a model of 20 ms: until the last one is done."""
    plan = stage.plan
    slow = {"BENCH_MODEL_SECONDS": "0.02"}
    rounds = ("--runs", str(_BURST), "--rounds", str(plan.agno_rounds))
    async with stage.stand(empty=True) as settings, stage.program("agno_queue", settings, *rounds, **slow) as peer:
        theirs = json.loads(await peer.said(r"(\{\"seconds\".*\})"))["seconds"]
    ours = []
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        stage.worker(settings, _TEAMS, **slow) as worker,
    ):
        await worker.consumes()
        for number in range(plan.agno_rounds + 1):
            burst = [request("capital", f"session-{number}", f"question {one}") for one in range(_BURST)]
            start = time.monotonic()
            await traffic.publish(burst)
            await traffic.replied((number + 1) * _BURST)
            ours.append(traffic.replies[-1].at - start)
    return [ratio("vs_agno_handoff", Measured("agno", "s", theirs), Measured("teamturn", "s", ours[1:]))]


def _agno(stage: Stage, settings: Settings) -> Program:
    return stage.peer("agno_consumer", settings, "--driver", DRIVER, "--prefetch", str(PREFETCH))


async def _lengthen(settings: Settings, runs: int) -> None:
    async with settled_rows(settings) as database:
        await copy_session(database, "model", "long", runs=runs)


_QUESTION = "What is the capital of France?"
