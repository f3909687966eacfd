"""Running a program whose tasks may run users' code."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

_log = structlog.get_logger()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a program to its end, as asyncio.run does; but code of users' that exits ends no more than its own task.

    sys.exit() in a task, of pydantic-ai's for an instruction say, would otherwise be carried on through the event loop,
    and end the worker, and the next one that is given the request. Who awaits the task is told of it all the same.
    What nobody awaits is logged.
    """
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(_tell)
        task = runner.get_loop().create_task(main)
        while True:
            try:
                runner.get_loop().run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done():
                    raise
                _log.error("exit_ignored", exc_info=error)
            else:
                return


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio would have logged with the error's text, and with what a callback was given."""
    message, task = str(context.get("message")), context.get("task") or context.get("future")
    _log.error(
        "task_failed",
        reason=message.partition("(")[0] if "handle" in context else message,
        task=task.get_name() if isinstance(task, asyncio.Task) else None,
        exc_info=context.get("exception"),
    )
