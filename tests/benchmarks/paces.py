"""How many turns a second: of one worker beside the hand-written loops, and within one session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.program import Program
from tests.benchmarks.stage import Stage, peers_queue
from tests.benchmarks.traffic import Pace, Request, Traffic, pace_of, requests
from worker.settings import Settings

Paces = Mapping[str, Sequence[Pace]]
"""Of each side, those of the rounds."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    program: Callable[[Settings], Program]
    load: Callable[[], Sequence[Request]]
    """New requests, for a round."""
    is_peer: bool = True
    """Whether it consumes the peers' queue."""
    empty_database: bool = False
    """Whether it makes its own tables."""


async def overheads(stage: Stage) -> list[Finding]:
    """One worker with an instant executor, and the two hand-written loops."""
    plan = stage.plan

    def load() -> Sequence[Request]:
        return requests("instant", plan.turns, sessions=plan.sessions)

    sides = (
        Side("teamturn", stage.worker, load, is_peer=False),
        Side("handwritten", lambda settings: stage.peer("handwritten", settings), load),
        Side("unsafe", lambda settings: stage.peer("handwritten", settings, "--unsafe"), load),
    )
    paces = await compared(stage, sides, plan.rounds)
    return [
        ratio(
            f"overhead_vs_{peer}",
            rate_of("teamturn", paces),
            rate_of(peer, paces),
            cpu_of("teamturn", paces),
            cpu_of(peer, paces),
        )
        for peer in ("handwritten", "unsafe")
    ]


async def handoff(stage: Stage) -> list[Finding]:
    """One worker, one session."""
    plan = stage.plan
    only = Side("teamturn", stage.worker, lambda: requests("instant", plan.handoff_turns, sessions=1), is_peer=False)
    paces = await compared(stage, [only], plan.handoff_rounds)
    rate, cpu = rate_of("teamturn", paces), cpu_of("teamturn", paces)
    return [Finding("handoff", rate.median, [rate, cpu])]


async def compared(stage: Stage, sides: Sequence[Side], rounds: int) -> Paces:
    """Measure each side in each round, one after the other."""
    paces: dict[str, list[Pace]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for side in sides:
            pace = await _measured(stage, side)
            stage.report(
                f"round {number}: {side.name} {pace.turns_per_second:,.0f} turns/s, "
                f"{pace.cpu_microseconds:,.0f} µs of CPU a turn"
            )
            paces[side.name].append(pace)
    return paces


def rate_of(side: str, paces: Paces) -> Measured:
    """How fast a side was."""
    return Measured(side, "turns/s", [pace.turns_per_second for pace in paces[side]])


def cpu_of(side: str, paces: Paces) -> Measured:
    """What a turn cost a side's own process."""
    return Measured(side, "µs of CPU a turn", [pace.cpu_microseconds for pace in paces[side]])


async def _measured(stage: Stage, side: Side) -> Pace:
    load = side.load()
    # A prefix of its own: what is not acknowledged when the program ends would be the next one's.
    async with stage.stand(empty=side.empty_database) as settings, Traffic(settings) as traffic:
        await traffic.publish(load, queue=peers_queue(settings) if side.is_peer else None)
        async with side.program(settings) as program:
            pace = await pace_of(program, traffic, len(load))
        traffic.check(load)
        return pace
