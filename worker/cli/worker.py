"""`teamturn worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final

import structlog
import typer

from worker.cli.event_loop import run
from worker.cli.schema import migrate_schema
from worker.cli.supervisor import Supervisor
from worker.errors import BrokerUnavailable, StartupError, StoreUnavailable
from worker.executors.registry import Executors, load_executors
from worker.operations.health import Health
from worker.operations.logging import configure_logging
from worker.operations.probes import Pages, PortTaken, served
from worker.settings import PROCESS_NUMBER, SUPERVISED, Settings
from worker.wiring import running_worker

_LAST_RESORT_SECONDS: Final = 3.0
_PORTS: Final = 65_536

_log = structlog.get_logger()


def worker(
    *,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema up to date first.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Run so many workers, each a process.")] = 1,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Either drains it: its queues are given away at once, and started turns finish; a second one does not wait. Any
    number of workers, on any number of machines, share the requests; each can come and go at any time.

    It answers GET /healthz and /readyz on TEAMTURN_HTTP_PORT, 8080 if that is not set (0: on none): 200, or 503 with a
    reason; /metrics for Prometheus; and /turns, what is executed now. Whoever reaches the port can read them: it
    belongs on a private network. Of several processes each has a port of its own, the first that one, the second the
    next.

    It takes the turns of what TEAMTURN_TEAMS names:

      TEAMTURN_TEAMS=my_teams:teams teamturn worker --migrate
      TEAMTURN_TEAMS=my_teams:teams teamturn worker --processes 4
    """
    settings = Settings.read()
    configure_logging(level=settings.logging_level, content=settings.log_content)
    if processes > 1:
        if settings.http_port and settings.http_port + processes > _PORTS:
            raise StartupError(f"TEAMTURN_HTTP_PORT leaves no ports for {processes} processes")
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
    except (StartupError, BrokerUnavailable, StoreUnavailable):
        raise
    except Exception:  # noqa: BLE001 - Python itself would write it with its text, and whatever secrets are in that
        _log.exception("worker_failed", consequence="what it had started runs elsewhere")
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
    health = Health()
    async with (
        _probed(settings, health.pages) as port,
        running_worker(settings, executors, migrating=migrating) as running,
    ):
        health.started(running.condition, running.pages)
        if SUPERVISED in os.environ:
            os.write(int(os.environ[SUPERVISED]), b"+")
        if isinstance(port, PortTaken):
            _log.warning("http_not_listening", reason=str(port), consequence="nobody can probe this worker")
        targets = [str(target) for target in executors]
        http_port = None if isinstance(port, PortTaken) else port
        _log.info("worker_started", targets=targets, prefix=settings.prefix, http_port=http_port)
        stopping = asyncio.create_task(told_to_stop.wait())
        failing = asyncio.create_task(running.failed())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            failing.result()
        failing.cancel()
        health.draining()
        await running.drain()
    _log.info("worker_stopped")


@asynccontextmanager
async def _probed(settings: Settings, pages: Pages) -> AsyncIterator[int | PortTaken | None]:
    """Answer probes for the block, and give the port; None: it is switched off.

    A port that was asked for must be free. The default one may be another worker's: then give why it can't be used.
    """
    if not settings.http_port:
        yield None
        return
    async with AsyncExitStack() as stack:
        port: int | PortTaken
        number = int(os.environ.get(PROCESS_NUMBER, "1"))
        try:
            port = await stack.enter_async_context(served(pages, settings.http_port + number - 1))
        except PortTaken as error:
            if "http_port" in settings.model_fields_set:
                raise StartupError(f"TEAMTURN_HTTP_PORT: {error}: choose another one, or 0 for none") from None
            port = error
        yield port


def _end_within(seconds: float, code: int) -> None:
    """End the process after some seconds whatever goes on in it.

    Users' code that ignores its cancellation, or sits in a thread, would keep asyncio and Python from ending.
    """
    last_resort = threading.Timer(seconds, os._exit, [code])
    last_resort.daemon = True
    last_resort.start()
