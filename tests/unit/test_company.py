"""Company: who runs beside whom."""

from __future__ import annotations

import asyncio

from tests.unit.examples import everything_that_can_run
from worker.turns.company import Company, Place


class Turns:
    """Turns that run until they are told to end."""

    def __init__(self) -> None:
        self.company = Company()
        self.running: set[str] = set()
        self.places: dict[str, Place] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, *, alone: bool = False) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, alone=alone))
        await everything_that_can_run()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await everything_that_can_run()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await everything_that_can_run()

    async def _run(self, name: str, *, alone: bool) -> None:
        async with self.company.joined(alone=alone) as place:
            self.places[name] = place
            self.running.add(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.discard(name)


async def test_turns_run_side_by_side() -> None:
    turns = Turns()
    for name in "abc":
        await turns.start(name)
    assert turns.running == {"a", "b", "c"}


async def test_one_that_is_to_be_alone_waits_for_those_that_run_and_later_ones_wait_for_it() -> None:
    turns = Turns()
    await turns.start("a")
    await turns.start("suspect", alone=True)
    await turns.start("b")
    assert turns.running == {"a"}
    await turns.end("a")
    assert turns.running == {"suspect"}
    await turns.end("suspect")
    assert turns.running == {"b"}


async def test_two_that_are_to_be_alone_run_one_after_the_other() -> None:
    turns = Turns()
    await turns.start("first", alone=True)
    await turns.start("second", alone=True)
    assert turns.running == {"first"}
    await turns.end("first")
    assert turns.running == {"second"}


async def test_one_that_has_shown_that_it_does_no_harm_lets_others_run_beside_it() -> None:
    turns = Turns()
    await turns.start("suspect", alone=True)
    await turns.start("other", alone=True)
    await turns.start("b")
    turns.places["suspect"].share()
    await everything_that_can_run()
    assert turns.running == {"suspect"}, "the other one waits for it, as for any that runs"
    await turns.end("suspect")
    assert turns.running == {"other"}
    turns.places["other"].share()
    turns.places["other"].share()
    await everything_that_can_run()
    assert turns.running == {"other", "b"}
    await turns.end("other")
    await turns.start("c")
    assert turns.running == {"b", "c"}


async def test_one_that_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    turns = Turns()
    await turns.start("a")
    await turns.start("suspect", alone=True)
    await turns.start("other", alone=True)
    await turns.start("b")
    await turns.cancel("suspect")
    await turns.cancel("other")
    assert turns.running == {"a", "b"}
    await turns.start("last", alone=True)
    await turns.end("a")
    await turns.end("b")
    assert turns.running == {"last"}
