"""One run, from the first request to the verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tests.chaos.case import Violation
from tests.chaos.checks import calls_of_thawed_workers, error_codes, violations
from tests.chaos.conversation import conversations
from tests.chaos.evidence import Evidence
from tests.chaos.faults import run_schedule
from tests.chaos.ledger import gather
from tests.chaos.plan import Fault, Plan
from tests.chaos.scene import Scene, scene
from tests.chaos.watched import watched
from worker.sandbox import Sandbox

_PROGRESS_SECONDS: Final = 10.0
_STUCK_SECONDS: Final = 90.0
"""Without one reply more, while all is there and nothing breaks. What a frozen worker held is free after 15."""
_BY_CHANCE: Final = frozenset({"watched_resumed", "watched_to_the_letter"})
"""What a short run may not meet with."""
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Verdict:
    """What came of a run."""

    plan: Plan
    evidence: Evidence
    found: dict[str, list[Violation]]
    tally: dict[str, int]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every promise was kept, and each was put to the test."""
        return not any(self.found.values()) and not self.untried

    @cached_property
    def tried(self) -> dict[str, int]:
        """How often what only some requests do has happened."""
        return conversations(self.evidence) | watched(self.evidence)

    @property
    def untried(self) -> list[str]:
        """What never happened: nothing can have been found of it."""
        return [name for name, number in self.tried.items() if number == 0 and name not in _BY_CHANCE]

    def line(self) -> dict[str, Any]:
        """What is printed: the contract's keys, and then some."""
        counts = {name: len(found) for name, found in self.found.items()}
        first, more = list(counts)[:5], list(counts)[5:]
        named = ("kills", f"{Fault.BROKER_RESTART}s", f"{Fault.POSTGRES_RESTART}s")
        tally = {f"{name}s" if name.endswith("_restart") else name: number for name, number in self.tally.items()}
        return {
            "requests": sum(len(run_ids) for run_ids in self.evidence.published.values()),
            **{name: counts[name] for name in first},
            **{name: tally.get(name, 0) for name in named},
            "seconds": round(self.seconds),
            **{name: counts[name] for name in more},
            "calls_of_thawed_workers": calls_of_thawed_workers(self.evidence),
            "seed": self.plan.seed,
            "sessions": len(self.evidence.published),
            "tried": self.tried,
            "errors": error_codes(self.evidence),
            "faults": {name: number for name, number in sorted(tally.items()) if name not in named},
        }


async def run(sandbox: Sandbox, plan: Plan, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Load, break, mend, wait until all is answered, and look."""
    async with scene(sandbox, plan, folder, say) as stage:
        began = time.monotonic()
        telling = asyncio.create_task(_tell(stage))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(stage.load.run())
                group.create_task(run_schedule(stage, plan.schedule()))
            stage.crew.thaw_all()
            await stage.load.settled()
            stage.tell("nothing breaks any more; what is left is to be answered")
            await _drained(stage)
            seconds = time.monotonic() - began
            codes = await stage.crew.end()
        finally:
            telling.cancel()
        stage.tally.counts["workers_started"] = stage.crew.started
        stage.tally.counts["publishes_repeated"] = stage.producer.repeated
        if any(codes):
            say(f"told to end, the workers ended with the codes {codes}")
        say("looking at what is stored")
        evidence = await gather(stage)
    return Verdict(plan, evidence, await asyncio.to_thread(violations, evidence), dict(stage.tally.counts), seconds)


async def _drained(stage: Scene) -> None:
    """Wait until every publish has a reply, or until no more of them come."""
    replies, since = len(stage.load.replies), time.monotonic()
    while stage.load.outstanding or stage.load.behind():
        if len(stage.load.replies) != replies:
            replies, since = len(stage.load.replies), time.monotonic()
        if time.monotonic() - since > _STUCK_SECONDS:
            stage.say(f"no reply for {_STUCK_SECONDS:g} s; {stage.load.outstanding} requests have none")
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _tell(stage: Scene) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        tally = stage.tally
        stage.say(
            f"{stage.load.confirmed:,} requests, {stage.load.outstanding} of them unanswered; {tally['kills']} kills, "
            f"{tally[Fault.BROKER_RESTART]} broker and {tally[Fault.POSTGRES_RESTART]} Postgres restarts, "
            f"{tally[Fault.CUT]} cuts, {tally[Fault.FREEZE]} freezes"
        )
