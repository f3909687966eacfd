"""Several workers: how much faster four are than one, and how long a partition waits when a worker comes or goes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import linear_regression
from typing import Final

from tests.acceptance.stage import QUICKER
from tests.benchmarks.executors import SECONDS_VARIABLE
from tests.benchmarks.figures import Finding, Measured, ratio
from tests.benchmarks.stage import Stage
from tests.benchmarks.traffic import Traffic, requests
from tests.support.fleet import Crew, under_load
from tests.support.stories import STORIES
from tests.support.workers import ROOT, WorkerProcess

_AT_A_TIME: Final = 50
"""Turns of each worker; with one-second turns that is its pace."""
_START_SECONDS: Final = 25
"""For which there are requests before the pace is taken."""


async def scale_out_4(stage: Stage) -> list[Finding]:
    """Turns that sleep a second, fifty at a time in each worker."""
    one, four = await _pace(stage, 1), await _pace(stage, 4)
    return [ratio("scale_out_4", Measured("4 workers", "turns/s", [four]), Measured("1 worker", "turns/s", [one]))]


async def _pace(stage: Stage, workers: int) -> float:
    """Turns/s of so many workers, once each has its share of the partitions."""
    rate = _AT_A_TIME * workers
    number = int(rate * (_START_SECONDS + stage.plan.window_seconds))
    load = requests("asleep", number, sessions=number)
    environment = {"TEAMTURN_MAX_CONCURRENT_TURNS": str(_AT_A_TIME), SECONDS_VARIABLE: "1", **QUICKER}
    async with stage.stand() as settings, Traffic(settings) as traffic, Crew(settings) as crew:
        await traffic.publish(load)
        async with AsyncExitStack() as stack:
            fleet = [
                await stack.enter_async_context(
                    WorkerProcess(settings, "tests.benchmarks.executors:everything", cwd=ROOT, **environment)
                )
                for _ in range(workers)
            ]
            await crew.settled(*fleet)
            # What was moved while they settled is behind them.
            await traffic.replied(len(traffic.replies) + 2 * rate)
            since = len(traffic.replies)
            await traffic.replied(since + int(rate * stage.plan.window_seconds))
            if any(worker.process.returncode is not None for worker in fleet):
                raise RuntimeError(f"of {workers} workers one has ended meanwhile")
    # They end in waves, a second apart: the slope of all of them says more than the time of the first and the last.
    times = [reply.at for reply in traffic.replies[since:]]
    pace = linear_regression(times, range(len(times))).slope
    stage.report(f"{workers} workers: {pace:,.1f} turns/s")
    return pace


async def rebalance_gap(stage: Stage) -> list[Finding]:
    """The tests' stories of a fleet under load: four partitions, and in each two sessions that go on asking."""
    measured = []
    for name in stage.plan.stories:
        async with under_load(stage.sandbox, stage.template, team_id="steady", ahead=8) as scene:
            story = await STORIES[name](scene)
        if story.mistakes:
            raise RuntimeError(f"{name}: {story.mistakes[0]}")
        longest = max(story.pauses.values())
        stage.report(f"{name}: {longest:.2f} s")
        measured.append(Measured(name, "s", [longest]))
    return [Finding("rebalance_gap", max(one.median for one in measured), measured)]
