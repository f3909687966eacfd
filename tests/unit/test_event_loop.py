"""Users' code that exits ends its own task, and not the program that runs it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from worker.cli.event_loop import run


def test_a_task_that_exits_ends_alone_and_who_awaits_it_is_told() -> None:
    told: list[BaseException] = []

    async def exits() -> None:
        await asyncio.sleep(0)
        sys.exit("users' code")

    async def main() -> None:
        forgotten = asyncio.create_task(exits())
        await asyncio.wait([forgotten])
        told.append(forgotten.exception() or AssertionError("it went on"))
        try:
            await asyncio.create_task(exits())
        except SystemExit as error:
            told.append(error)
        await asyncio.sleep(0)
        told.append(LookupError("the end"))

    run(main())
    assert [type(error) for error in told] == [SystemExit, SystemExit, LookupError]


@pytest.mark.parametrize("error", [SystemExit(3), LookupError(), asyncio.CancelledError()])
def test_what_the_program_itself_ends_with_is_raised(error: BaseException) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)):
        run(main())
