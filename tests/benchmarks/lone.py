"""How long a lone request takes: beside the hand-written loop, and in a long session beside a short one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.benchmarks.copies import copy_session, settled_rows
from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.stage import Stage, peers_queue
from tests.benchmarks.traffic import Traffic, request

_AT_A_TIME = 10
_SHORT_SESSION = 10
_QUESTION = "a lone question"


Lone = Callable[[int], Awaitable[float]]
"""Have the so-manieth request answered, and return the seconds that it took."""


async def alternating(first: Lone, second: Lone, *, requests: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of so many requests of each side, ten of the one and ten of the other in turn.

    Not one and one: each would find the processor's caches full of the other's. The first ten are not counted.
    """
    sides: tuple[list[float], list[float]] = ([], [])
    for start in range(0, _AT_A_TIME + requests, _AT_A_TIME):
        for answered, lone in zip(sides, (first, second), strict=True):
            taken = [1000 * await lone(number) for number in range(start, start + _AT_A_TIME)]
            answered.extend(taken if start else ())
    return sides


async def latency_vs_handwritten(stage: Stage) -> list[Finding]:
    """Both wait for requests at the same time, and get some in turn; each in a session of its own."""
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        stage.worker(settings) as worker,
        stage.peer("handwritten", settings) as peer,
    ):
        await worker.consumes()
        await peer.consumes()
        queue = peers_queue(settings)
        ours, theirs = await alternating(
            lambda number: traffic.lone(request("instant", f"ours-{number}", _QUESTION)),
            lambda number: traffic.lone(request("instant", f"theirs-{number}", _QUESTION), queue=queue),
            requests=stage.plan.lone_requests,
        )
    return [ratio("latency_vs_handwritten", Measured("teamturn", "ms", ours), Measured("handwritten", "ms", theirs))]


async def flat_10000(stage: Stage) -> list[Finding]:
    """Turns of the worker in turn: the next ones of one long session, and the eleventh of short ones."""
    plan = stage.plan
    async with stage.stand() as settings, Traffic(settings) as traffic, stage.worker(settings) as worker:
        await worker.consumes()
        await traffic.lone(request("instant", "model", _QUESTION))
        async with settled_rows(settings) as database:
            await copy_session(database, "model", "long", runs=plan.long_session)
            for number in range(_AT_A_TIME + plan.lone_requests):
                await copy_session(database, "model", f"short-{number}", runs=_SHORT_SESSION)
        long, short = await alternating(
            lambda _: traffic.lone(request("instant", "long", _QUESTION)),
            lambda number: traffic.lone(request("instant", f"short-{number}", _QUESTION)),
            requests=plan.lone_requests,
        )
    sides = (Measured(f"{plan.long_session:,} runs", "ms", long), Measured(f"{_SHORT_SESSION} runs", "ms", short))
    return [ratio("flat_10000", *sides)]
