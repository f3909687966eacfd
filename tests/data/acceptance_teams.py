"""Executors as a user would write them, for workers that are processes of their own.

A gate is where a test holds a turn: it appends a line to `<name>.reached` in TEST_GATES for each turn that comes
there, and opens when the test makes `<name>.open`.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

from teamturn import Turn, executor

ERRORS: dict[str, type[BaseException]] = {
    error.__name__: error for error in (RuntimeError, TimeoutError, asyncio.CancelledError, SystemExit)
}
SECRET_OF_THE_EXECUTOR = "the-executors-own-secret-4711"


@executor("echo")
async def echo(turn: Turn) -> Any:
    return turn.input


@executor("clerk", kind="agent")
async def clerk(turn: Turn) -> Any:
    return turn.input


@executor("pipeline", kind="workflow")
async def pipeline(turn: Turn) -> Any:
    return {"input": turn.input}


@executor("worked")
async def worked(turn: Turn) -> Any:
    """Take a few milliseconds, so that a kill meets turns in every state."""
    await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - nothing secret
    return turn.input


@executor("remembers")
async def remembers(turn: Turn) -> Any:
    seen = turn.session_state.get("seen", 0)
    assert isinstance(seen, int)
    turn.session_state["seen"] = seen + 1
    return {"history": [run.input for run in turn.history], "state": turn.session_state, "metadata": turn.metadata}


@executor("gated")
async def gated(turn: Turn) -> Any:
    """Wait at the gate that the input names."""
    folder = Path(os.environ["TEST_GATES"])
    with (folder / f"{turn.input}.reached").open("a") as reached:
        reached.write("here\n")
    opened = folder / f"{turn.input}.open"
    while not opened.exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)
    return f"through {turn.input}"


@executor("stubborn")
async def stubborn(turn: Turn) -> Any:
    """Come to the gate that the input names, and go on whenever somebody cancels it there, as careless code does."""
    while True:
        try:
            return await gated(turn)
        except asyncio.CancelledError:
            continue


@executor("endless")
async def endless(_turn: Turn) -> Any:
    await asyncio.Event().wait()


@executor("broken")
async def broken(turn: Turn) -> Any:
    """Raise the error that the input names."""
    turn.session_state["half"] = "done"
    raise ERRORS.get(turn.input, RuntimeError)(SECRET_OF_THE_EXECUTOR)


@executor("mended")
async def mended(turn: Turn) -> Any:
    """Fail until somebody opens the gate that the input names."""
    if not (Path(os.environ["TEST_GATES"]) / f"{turn.input}.open").exists():
        raise RuntimeError("not mended yet")
    return {"attempt": turn.attempt, "history": [run.input for run in turn.history]}


everything = [echo, clerk, pipeline, worked, remembers, gated, stubborn, endless, broken, mended]
