"""Steps: known by name and count, and their results plain JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import JsonValue

from tests.unit.examples import a_turn
from worker.errors import InvalidResult
from worker.executors.journal import Asked


async def _price() -> JsonValue:
    await asyncio.sleep(0)
    return {"price": 3}


def _future() -> Awaitable[JsonValue]:
    future: asyncio.Future[JsonValue] = asyncio.get_running_loop().create_future()
    future.set_result({"price": 3})
    return future


@pytest.mark.parametrize(
    "fn",
    [_price, lambda: {"price": 3}, _future, lambda: asyncio.ensure_future(_price())],
    ids=["async function", "function", "a future's", "a task's"],
)
async def test_a_step_returns_what_its_function_returns_or_what_that_comes_to(fn: Callable[[], Any]) -> None:
    assert await a_turn().step("price", fn) == {"price": 3}


async def test_a_name_used_again_is_counted_and_each_name_by_itself() -> None:
    steps = a_turn().steps
    keys = []
    for name in ["a", "b", "a", "a", "b", "a#1"]:
        await steps.run(name, lambda: 1)
        keys.append(steps.journal.last_key)
    assert keys == ["a#1", "b#1", "a#2", "a#3", "b#2", "a#1#1"]


async def test_steps_side_by_side_are_counted_in_the_order_of_their_calls() -> None:
    steps = a_turn().steps
    begun: list[str | None] = []
    go = asyncio.Event()

    async def work() -> JsonValue:
        begun.append(steps.journal.last_key)
        await go.wait()
        return None

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(steps.run("call", work))
        await asyncio.sleep(0)
        go.set()
    assert begun == ["call#1", "call#2", "call#3"]


async def test_calls_side_by_side_have_a_number_each_and_one_that_fails_gives_its_own_to_its_repetition() -> None:
    steps = a_turn().steps
    asked = Asked("", failure_kept=False)
    begun: list[str | None] = []
    ends: list[asyncio.Future[None]] = []

    async def make() -> None:
        begun.append(steps.journal.last_key)
        ends.append(asyncio.get_running_loop().create_future())
        await ends[-1]

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(steps.call("call", asked, make))
        await asyncio.sleep(0)
        return task

    first, second = await begin(), await begin()
    ends[0].set_exception(LookupError)
    await asyncio.gather(first, return_exceptions=True)
    tasks = [second, await begin(), await begin()]
    for end in ends[1:]:
        end.set_result(None)
    await asyncio.gather(*tasks)
    assert begun == ["call#1", "call#2", "call#1", "call#3"]


async def test_a_function_runs_once_a_call() -> None:
    calls = []
    turn = a_turn()
    for _ in range(2):
        await turn.step("pay", lambda: calls.append(1))
    assert len(calls) == 2


async def test_a_result_becomes_plain_json() -> None:
    made: Any = (1, {2}, "\x00")
    assert await a_turn().step("odd", lambda: made) == [1, [2], "\ufffd"]


@pytest.mark.parametrize("result", [object(), float("nan"), {"a": object()}])
async def test_a_result_that_is_not_json_is_an_invalid_result_that_names_the_step(result: Any) -> None:
    with pytest.raises(InvalidResult, match="step 'odd'"):
        await a_turn().step("odd", lambda: result)


async def test_what_a_function_raises_comes_out_of_the_step() -> None:
    def fail() -> JsonValue:
        raise LookupError("no price")

    turn = a_turn()
    with pytest.raises(LookupError, match="no price"):
        await turn.step("price", fail)
    assert await turn.step("price", lambda: 3) == 3


async def test_emitting_an_event_that_nobody_watches_does_nothing() -> None:
    await a_turn().emit({"type": "progress", "done": 0.5})
