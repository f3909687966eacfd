"""The lag of the event loop: what is blocked is seen for as long as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from typing_extensions import override

from tests.support.waiting import eventually
from worker.measures import Measures
from worker.operations import loop_lag
from worker.operations.loop_lag import measure_loop_lag


class Lags(Measures):
    def __init__(self) -> None:
        self.seen: list[float] = []

    @override
    def loop_lagged(self, seconds: float) -> None:
        self.seen.append(seconds)


@asynccontextmanager
async def measured() -> AsyncIterator[Lags]:
    lags = Lags()
    task = asyncio.create_task(measure_loop_lag(lags))
    try:
        await eventually(lambda: bool(lags.seen))
        lags.seen.clear()
        yield lags
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_each_beat_that_a_blocked_loop_misses_is_measured_by_how_late_it_was() -> None:
    async with measured() as lags:
        time.sleep(1.0)  # noqa: ASYNC251 - as a team's code does
        await eventually(lambda: len(lags.seen) >= 4)
    first = lags.seen[:3]
    assert first == sorted(first, reverse=True)
    assert [late > least for late, least in zip(first, (0.7, 0.45, 0.2), strict=True)] == [True] * 3


async def test_a_freeze_of_any_length_is_made_up_for_by_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "_MOST_MISSED", 2)
    async with measured() as lags:
        time.sleep(2.0)  # noqa: ASYNC251 - as a process that was frozen; eight beats
        await eventually(lambda: bool(lags.seen) and lags.seen[-1] < 0.1)
    assert lags.seen[0] > 1.5
    assert [late for late in lags.seen[1:] if late > 0.6] == []
