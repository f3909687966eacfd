"""The share of Postgres's lock table: turns beyond it wait, each gets its turn, and none is forgotten."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.unit.examples import everything_that_can_run
from worker.sessions.lock_table import SHARE, LockBudget


@asynccontextmanager
async def locked(budget: LockBudget) -> AsyncIterator[None]:
    """A session that is locked for the block."""
    await budget.take()
    try:
        yield
    finally:
        budget.give_back()


def budget_of(limit: int) -> LockBudget:
    """A budget of so many sessions."""
    budget = LockBudget(math.ceil(limit / SHARE))
    assert budget.limit == limit
    return budget


class Sessions:
    """Sessions that are locked when there is room, until the test ends them."""

    def __init__(self, budget: LockBudget) -> None:
        self._budget = budget
        self.locked: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def lock(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._one(name))
        await everything_that_can_run()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await everything_that_can_run()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await everything_that_can_run()

    async def end_all(self) -> None:
        await self.end(*self._ends)
        async with asyncio.timeout(1):
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _one(self, name: str) -> None:
        async with locked(self._budget):
            self.locked.append(name)
            await self._ends[name].wait()


@pytest.mark.parametrize(("locks", "limit"), [(6_400, 5_120), (10, 8), (1, 1), (0, 1)])
def test_a_share_of_the_table_is_used_and_at_least_one_session_is_locked(locks: int, limit: int) -> None:
    assert LockBudget(locks).limit == limit


@pytest.mark.parametrize(("workers", "limit"), [(1, 100), (3, 33), (100, 1), (1_000, 1), (0, 100)])
def test_the_share_is_everybody_s(workers: int, limit: int) -> None:
    budget = budget_of(100)
    budget.share_with(workers)
    assert budget.limit == limit


def test_who_is_left_alone_has_all_of_it_again() -> None:
    budget = budget_of(100)
    budget.share_with(4)
    budget.share_with(1)
    assert budget.limit == 100


async def test_no_more_sessions_are_locked_than_there_is_room_for() -> None:
    sessions = Sessions(budget_of(2))
    await sessions.lock("a", "b", "c", "d")
    assert sessions.locked == ["a", "b"]
    await sessions.end_all()


async def test_those_that_wait_are_locked_in_their_order_one_for_each_that_ends() -> None:
    sessions = Sessions(budget_of(2))
    await sessions.lock("a", "b", "c", "d", "e")
    await sessions.end("b")
    assert sessions.locked == ["a", "b", "c"]
    await sessions.end("c")
    assert sessions.locked == ["a", "b", "c", "d"]
    await sessions.end("a", "d")
    assert sessions.locked == ["a", "b", "c", "d", "e"]
    await sessions.end_all()


async def test_a_session_that_fails_gives_its_room_back() -> None:
    budget = budget_of(1)
    with pytest.raises(LookupError):
        async with locked(budget):
            raise LookupError
    async with asyncio.timeout(1), locked(budget):
        pass


async def test_one_that_gives_up_waiting_takes_nobody_s_turn() -> None:
    sessions = Sessions(budget_of(1))
    await sessions.lock("a", "b", "c")
    await sessions.cancel("b")
    await sessions.end("a")
    assert sessions.locked == ["a", "c"]
    await sessions.end_all()


@pytest.mark.parametrize("steps", range(8))
async def test_one_that_gives_up_when_its_turn_has_just_come_passes_it_on(steps: int) -> None:
    sessions = Sessions(budget_of(1))
    await sessions.lock("a", "b", "c")
    sessions._ends["a"].set()
    for _ in range(steps):
        await asyncio.sleep(0)
    await sessions.cancel("b")
    assert sessions.locked[-1] == "c"
    await sessions.end_all()


async def test_when_a_worker_leaves_those_that_wait_get_its_room_at_once() -> None:
    budget = budget_of(4)
    budget.share_with(4)
    sessions = Sessions(budget)
    await sessions.lock("a", "b", "c", "d", "e")
    assert sessions.locked == ["a"]
    budget.share_with(1)
    await everything_that_can_run()
    assert sessions.locked == ["a", "b", "c", "d"]
    await sessions.end_all()


async def test_when_a_worker_joins_nothing_more_is_locked_until_enough_have_ended() -> None:
    budget = budget_of(4)
    sessions = Sessions(budget)
    await sessions.lock("a", "b", "c", "d", "e")
    budget.share_with(2)
    await sessions.end("a", "b")
    assert sessions.locked == ["a", "b", "c", "d"]
    await sessions.end("c")
    assert sessions.locked == ["a", "b", "c", "d", "e"]
    await sessions.end_all()


async def test_a_session_with_one_turn_after_the_other_does_not_keep_others_waiting() -> None:
    """A mailbox begins its next turn in the moment in which the one before has ended."""
    budget = budget_of(1)
    order: list[str] = []

    async def busy() -> None:
        for _ in range(10):
            async with locked(budget):
                order.append("busy")
                await asyncio.sleep(0)

    async def other() -> None:
        async with locked(budget):
            order.append("other")

    await asyncio.gather(busy(), other())
    assert order.index("other") == 1


async def test_however_they_come_go_and_give_up_all_room_is_there_afterwards() -> None:
    budget = budget_of(3)
    most, now = 0, 0

    async def session(number: int) -> None:
        nonlocal most, now
        async with locked(budget):
            now += 1
            most = max(most, now)
            try:
                for _ in range(number % 5):
                    await asyncio.sleep(0)
            finally:
                now -= 1

    tasks = [asyncio.create_task(session(number)) for number in range(200)]
    for number, task in enumerate(tasks):
        if number % 7 == 0:
            await asyncio.sleep(0)
            task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert budget._held == 0
    assert not budget._waiting
