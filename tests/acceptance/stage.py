"""A stage: a database and a prefix of their own, a worker in a process, and a producer. For one test or a module."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from pydantic import SecretStr
from yarl import URL

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import ROOT, WorkerProcess
from worker.sandbox import Sandbox
from worker.settings import Settings

Result = TypeVar("Result")

DATA = ROOT / "tests" / "data"
TEAMS = "acceptance_teams:everything"
NEWSROOM = "acceptance_newsroom:newsroom"
"""Apart from the others: a worker with a Team loads the model libraries, which takes a second."""

QUICKER = (
    {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "bytecode")}
    if sys.dont_write_bytecode
    else {}
)
"""For the environment of commands: where Python keeps no bytecode, each start compiles all modules again."""


class Gates:
    """Where a test holds turns of the executor `gated`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def reached(self, name: str, *, times: int = 1) -> None:
        """Wait until so many turns have come to the gate."""
        file = self.folder / f"{name}.reached"
        await eventually(lambda: file.exists() and len(file.read_text().splitlines()) >= times)

    def visits(self, name: str) -> int:
        """How many turns have come to the gate so far."""
        file = self.folder / f"{name}.reached"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def open(self, name: str) -> None:
        """Let through who waits there, and who comes."""
        (self.folder / f"{name}.open").touch()


@dataclass(frozen=True)
class Stage:
    """What a test of a running worker needs."""

    settings: Settings
    worker: WorkerProcess
    broker: TestBroker
    database: asyncpg.Connection
    gates: Gates

    async def runs(self, session_id: str) -> list[dict[str, Any]]:
        """Return the session's runs as `ai.sessions` shows them; none if it isn't there."""
        return await stored_runs(self.database, session_id)


async def stored_runs(database: asyncpg.Connection, session_id: str) -> list[dict[str, Any]]:
    """Return the session's runs as `ai.sessions` shows them; none if it isn't there."""
    found = await database.fetchval("select runs from ai.sessions where session_id = $1", session_id)
    return [] if found is None else json_of(found)


def json_of(value: Any) -> Any:
    """Return a jsonb value as Python has it; asyncpg gives its text."""
    return json.loads(value)


async def two_at_a_time(runs: Mapping[str, Callable[[], Awaitable[Result]]]) -> dict[str, Result]:
    """Run commands that share nothing, as many at once as a small machine has cores; return what came of each."""
    free = asyncio.Semaphore(2)

    async def one(run: Callable[[], Awaitable[Result]]) -> Result:
        async with free:
            return await run()

    return dict(zip(runs, await asyncio.gather(*map(one, runs.values())), strict=True))


def worker_on(
    settings: Settings, gates: Gates | None = None, *, teams: str = TEAMS, cwd: Path = DATA, **environment: str
) -> WorkerProcess:
    """A worker process with teams of tests/data, or of another directory."""
    if gates is not None:
        environment["TEST_GATES"] = str(gates.folder)
    return WorkerProcess(settings, teams, cwd=cwd, **QUICKER | environment)


@asynccontextmanager
async def database_of_its_own(sandbox: Sandbox, template: str | None) -> AsyncIterator[str]:
    """The URL of a new database, dropped after the block: a copy of the template, or an empty one."""
    name = f"teamturn_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(sandbox.postgres_url)
    try:
        await admin.execute(f'create database "{name}"' + (f' template "{template}"' if template else ""))
        try:
            yield str(URL(sandbox.postgres_url).with_path(f"/{name}"))
        finally:
            await admin.execute(f'drop database "{name}" with (force)')
    finally:
        await admin.close()


@asynccontextmanager
async def staged(
    sandbox: Sandbox,
    template: str,
    folder: Path,
    *,
    teams: str = TEAMS,
    cwd: Path = DATA,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    """A stage with a worker that consumes, until the end of the block."""
    gates = Gates(folder)
    async with database_of_its_own(sandbox, template) as postgres_url:
        settings = Settings(
            amqp_url=SecretStr(sandbox.amqp_url),
            postgres_url=SecretStr(postgres_url),
            prefix=f"t-{uuid.uuid4().hex[:8]}",
            partitions=2,
            prefetch=32,
        )
        database = await asyncpg.connect(postgres_url)
        try:
            async with TestBroker(sandbox.amqp_url, settings.prefix) as broker:
                try:
                    async with worker_on(settings, gates, teams=teams, cwd=cwd, **(environment or {})) as worker:
                        await worker.consuming()
                        yield Stage(settings, worker, broker, database, gates)
                finally:
                    await broker.delete_everything(settings.partitions)
        finally:
            await database.close()
