"""A time limit that counts only while the event loop looks for answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from worker.patience import answered_within


async def test_an_answer_that_does_not_come_is_a_time_out() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with answered_within(0.5):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.45


async def test_an_answer_in_time_is_none_and_nothing_comes_after_it() -> None:
    async with answered_within(0.5):
        await asyncio.sleep(0)
    await asyncio.sleep(0.6)


async def test_an_answer_that_lay_unread_while_the_loop_was_busy_is_taken() -> None:
    """Asyncio's own limit would have passed before the loop came to look."""
    answer = asyncio.Event()

    async def be_busy() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - as teams' own code does
        await asyncio.sleep(0.1)
        answer.set()

    busy = asyncio.create_task(be_busy())
    async with answered_within(1):
        await answer.wait()
    await busy


async def test_a_cancellation_stays_one() -> None:
    async def waiting() -> None:
        async with answered_within(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_time_for_which_the_other_side_says_that_it_is_held_up_does_not_count() -> None:
    held_up, answer = True, asyncio.Event()

    async def be_held_up() -> None:
        nonlocal held_up
        await asyncio.sleep(1.2)
        held_up = False
        answer.set()

    holding = asyncio.create_task(be_held_up())
    async with answered_within(0.5, held_up=lambda: held_up):
        await answer.wait()
    await holding


@pytest.mark.parametrize("held_up", [True, False])
async def test_what_nobody_waits_for_is_given_up_at_once_where_it_is_held_up(*, held_up: bool) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with answered_within(1, held_up=lambda: held_up, given_up=lambda: True):
            await asyncio.Event().wait()
    assert (time.monotonic() - began < 0.9) is held_up
