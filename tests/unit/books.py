"""The journal of a run over several attempts, kept in memory as Postgres keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tests.unit.examples import NOW, a_request
from worker.errors import LaneLost
from worker.executors.attempt import Outcome, attempt, new_turn
from worker.executors.journal import Journal, StepRecord, StepState
from worker.executors.turn import Executor, PastRun, Turn, TurnContext


@dataclass
class Book:
    """What is recorded of one run; `dies_at` makes a worker die in place of a write."""

    fields: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, StepRecord] = field(default_factory=dict)
    writes: list[list[StepRecord]] = field(default_factory=list)
    attempts: int = 0
    dies_at: int | None = None
    """The number of the write, from 1 and over all attempts, at which the lane is lost."""
    seconds_each: float = 0
    """How long a write takes."""
    turn: Turn | None = None
    """The turn of the latest attempt."""

    async def write(self, steps: Sequence[StepRecord]) -> None:
        await asyncio.sleep(self.seconds_each)
        if self.dies_at is not None and len(self.writes) + 1 >= self.dies_at:
            self.dies_at = None
            raise LaneLost("the lane is lost")
        self.writes.append(list(steps))
        self.steps |= {step.key: step for step in steps}

    async def attempt(self, executor: Executor, *history: PastRun) -> Outcome:
        """Take the turn once more. Raises LaneLost if the worker lost its lane."""
        self.attempts += 1
        request = a_request(**self.fields)
        given = TurnContext(NOW, history)
        recorded = list(self.steps.values())
        journal = Journal(self.write, attempt=self.attempts, recorded=recorded, context=given.as_json)
        self.turn = new_turn(request, None, given, attempt=self.attempts, journal=journal)
        return await attempt(executor, self.turn, limit=timedelta(seconds=60), now=NOW, deadline=None)

    async def until_done(self, executor: Executor) -> Outcome:
        """Take the turn until its lane outlasts it."""
        while True:
            try:
                return await self.attempt(executor)
            except LaneLost:
                continue

    def recorded(self, state: StepState = StepState.DONE) -> list[str]:
        """The keys of the steps in a state, as they were recorded."""
        found = [step for step in self.steps.values() if step.state is state and step.seq]
        return [step.key for step in sorted(found, key=lambda step: step.seq)]
