"""`teamturn worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Annotated, Final

import structlog
import typer

from worker.cli.event_loop import run
from worker.cli.schema import migrate_schema
from worker.cli.supervisor import SUPERVISED, Supervisor
from worker.executors.registry import Executors, load_executors
from worker.operations.logging import configure_logging
from worker.settings import Settings
from worker.wiring import running_worker

_LAST_RESORT_SECONDS: Final = 3.0

_log = structlog.get_logger()


def worker(
    *,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema up to date first.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Run so many workers, each a process.")] = 1,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Either drains it: its queues are given away at once, and started turns finish; a second one does not wait. Any
    number of workers, on any number of machines, share the requests; each can come and go at any time.

    It takes the turns of what TEAMTURN_TEAMS names:

      TEAMTURN_TEAMS=my_teams:teams teamturn worker --migrate
      TEAMTURN_TEAMS=my_teams:teams teamturn worker --processes 4
    """
    settings = Settings.read()
    configure_logging()
    if processes > 1:
        if migrate:
            migrate_schema()
        raise typer.Exit(asyncio.run(Supervisor(processes).run()))
    for name in Settings.without_effect(os.environ):
        _log.warning("setting_without_effect", name=name)
    executors = load_executors(settings.teams)
    try:
        run(_work(settings, executors, migrating=migrate))
    except asyncio.CancelledError:
        _log.warning("worker_stopped_at_once", consequence="what it had started runs elsewhere")
        raise typer.Exit(1) from None


async def _work(settings: Settings, executors: Executors, *, migrating: bool) -> None:
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main_task = asyncio.current_task()

    def on_signal() -> None:
        # The second signal is somebody who does not want to wait.
        if told_to_stop.is_set() and main_task is not None:
            main_task.cancel()
        told_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if SUPERVISED in os.environ:
        # Nothing is ever written there: it becomes readable when the supervisor is gone.
        loop.add_reader(sys.stdin.fileno(), _orphaned, told_to_stop)
    code = 1
    try:
        await _work_until(told_to_stop, settings, executors, migrating=migrating)
        code = 0
    finally:
        _end_within(_LAST_RESORT_SECONDS, code)


def _orphaned(told_to_stop: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    _log.warning("supervisor_gone", consequence="this worker drains")
    told_to_stop.set()


async def _work_until(
    told_to_stop: asyncio.Event, settings: Settings, executors: Executors, *, migrating: bool
) -> None:
    async with running_worker(settings, executors, migrating=migrating) as running:
        if SUPERVISED in os.environ:
            os.write(int(os.environ[SUPERVISED]), b"+")
        _log.info("worker_started", targets=[str(target) for target in executors], prefix=settings.prefix)
        stopping = asyncio.create_task(told_to_stop.wait())
        failing = asyncio.create_task(running.failed())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            failing.result()
        failing.cancel()
        await running.drain()
    _log.info("worker_stopped")


def _end_within(seconds: float, code: int) -> None:
    """End the process after some seconds whatever goes on in it.

    Users' code that ignores its cancellation, or sits in a thread, would keep asyncio and Python from ending.
    """
    last_resort = threading.Timer(seconds, os._exit, [code])
    last_resort.daemon = True
    last_resort.start()
