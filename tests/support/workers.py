"""Workers for tests: in this process with executors at hand, or as a real process of the real command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import eventually
from worker.executors.turn import Executor
from worker.settings import Settings
from worker.wiring import running_worker
from worker.worker import Worker

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def worker_of(settings: Settings, *executors: Executor) -> AsyncIterator[Worker]:
    """A worker in this process, until the end of the block."""
    by_target = {executor.target: executor for executor in executors}
    async with running_worker(settings, by_target, migrating=False) as worker:
        yield worker


def environment_of(settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a command with these settings."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TEAMTURN_")},
        "TEAMTURN_AMQP_URL": settings.amqp_url.get_secret_value(),
        "TEAMTURN_POSTGRES_URL": settings.postgres_url.get_secret_value(),
        "TEAMTURN_PREFIX": settings.prefix,
        "TEAMTURN_PARTITIONS": str(settings.partitions),
        "TEAMTURN_PREFETCH": str(settings.prefetch),
        "TEAMTURN_DB_SCHEMA": settings.db_schema,
        "TEAMTURN_HTTP_PORT": "0",
        "PYTHONPATH": str(ROOT),
        **more,
    }


_CONSOLE_SCRIPT = "import sys; sys.argv[0] = 'teamturn'; from teamturn import main; sys.exit(main())"


async def run_command(
    *arguments: str, environment: Mapping[str, str], cwd: Path = ROOT, seconds: float = 60
) -> tuple[int, str, str]:
    """Run `teamturn …` as a process; return its exit code, standard output and standard error."""
    return await run_python("-m", "worker", *arguments, environment=environment, cwd=cwd, seconds=seconds)


async def run_console_script(
    *arguments: str, environment: Mapping[str, str], cwd: Path = ROOT, seconds: float = 60
) -> tuple[int, str, str]:
    """Run `teamturn …` as its console script does, the working directory not on the path; return as `run_command`."""
    words = ("-P", "-c", _CONSOLE_SCRIPT, *arguments)
    return await run_python(*words, environment=environment, cwd=cwd, seconds=seconds)


async def run_python(*words: str, environment: Mapping[str, str], cwd: Path, seconds: float) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        env=dict(environment),
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode(), err.decode()


class WorkerProcess:
    """`teamturn worker` as a process of its own."""

    def __init__(self, settings: Settings, teams: str, *, cwd: Path, **environment: str) -> None:
        self._environment = environment_of(settings, TEAMTURN_TEAMS=teams, **environment)
        self._cwd = cwd
        self.lines: list[str] = []

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker",
            "worker",
            env=self._environment,
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading
        if kind is not None:
            print("\n".join(self.lines[-50:]))

    async def consuming(self) -> None:
        """Wait until it consumes all its queues."""
        await self.logged("worker_consuming")

    async def logged(self, event: str, *, times: int = 1, seconds: float = 30) -> None:
        """Wait until it has logged an event so many times."""
        await eventually(
            lambda: self.process.returncode is not None or len(self.events(event)) >= times, seconds=seconds
        )
        assert len(self.events(event)) >= times, "\n".join(self.lines[-20:])

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has logged under a name."""
        found = (json.loads(line) for line in self.lines if f'"{name}"' in line and line.startswith("{"))
        return [event for event in found if event.get("event") == name]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exited(self, *, seconds: float = 30) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode().rstrip())
