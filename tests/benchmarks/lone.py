"""How long a lone request takes: beside the hand-written loop, and in a long session beside a short one."""

from __future__ import annotations

from tests.benchmarks.copies import copy_session, settled_rows
from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.stage import Stage, peers_queue
from tests.benchmarks.traffic import Traffic, request

_WARM_UP = 20
_SHORT_SESSION = 10
_QUESTION = "a lone question"


async def latency_vs_handwritten(stage: Stage) -> list[Finding]:
    """Both wait for requests at the same time, and get one in turn; each in a session of its own."""
    ours, theirs = [], []
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        stage.worker(settings) as worker,
        stage.peer("handwritten", settings) as peer,
    ):
        await worker.consumes()
        await peer.consumes()
        for number in range(-_WARM_UP, stage.plan.lone_requests):
            mine = await traffic.lone(request("instant", f"ours-{number}", _QUESTION))
            other = await traffic.lone(request("instant", f"theirs-{number}", _QUESTION), queue=peers_queue(settings))
            if number >= 0:
                ours.append(mine * 1000)
                theirs.append(other * 1000)
    return [ratio("latency_vs_handwritten", Measured("teamturn", "ms", ours), Measured("handwritten", "ms", theirs))]


async def flat_10000(stage: Stage) -> list[Finding]:
    """Two turns of the worker in turn: the next of one long session, and the eleventh of a short one."""
    plan = stage.plan
    long, short = [], []
    async with stage.stand() as settings, Traffic(settings) as traffic, stage.worker(settings) as worker:
        await worker.consumes()
        await traffic.lone(request("instant", "model", _QUESTION))
        async with settled_rows(settings) as database:
            await copy_session(database, "model", "long", runs=plan.long_session)
            for number in range(-_WARM_UP, plan.lone_requests):
                await copy_session(database, "model", f"short-{number}", runs=_SHORT_SESSION)
        for number in range(-_WARM_UP, plan.lone_requests):
            in_long = await traffic.lone(request("instant", "long", _QUESTION))
            in_short = await traffic.lone(request("instant", f"short-{number}", _QUESTION))
            if number >= 0:
                long.append(in_long * 1000)
                short.append(in_short * 1000)
    sides = (Measured(f"{plan.long_session:,} runs", "ms", long), Measured(f"{_SHORT_SESSION} runs", "ms", short))
    return [ratio("flat_10000", *sides)]
