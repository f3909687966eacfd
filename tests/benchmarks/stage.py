"""The stage of the benchmark: the servers, databases and prefixes, and the programs that are measured on them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr
from yarl import URL

from tests.acceptance.stage import database_of_its_own
from tests.benchmarks.plan import Plan
from tests.benchmarks.program import Program
from tests.support.broker import TestBroker
from tests.support.workers import environment_of
from worker.intake.topology import DELIVERY_LIMIT, Topology, apply
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.sessions.migrations import migrate
from worker.settings import Settings


@dataclass(frozen=True)
class Stage:
    """What a benchmark measures on."""

    sandbox: Sandbox
    template: str
    """A migrated, empty database to copy."""
    logs: Path
    plan: Plan
    report: Callable[[str], None]

    @asynccontextmanager
    async def stand(self, *, empty: bool = False, **changed: Any) -> AsyncIterator[Settings]:
        """Settings, default but for what is given, with a prefix and a database of their own for the block.

        The queues are there, and beside teamturn's one for a peer; the database is migrated, or quite empty.
        """
        async with database_of_its_own(self.sandbox, None if empty else self.template) as postgres_url:
            settings = Settings(
                amqp_url=SecretStr(self.sandbox.amqp_url),
                postgres_url=SecretStr(postgres_url),
                prefix=f"bench-{uuid.uuid4().hex[:8]}",
                **changed,
            )
            async with TestBroker(self.sandbox.amqp_url, settings.prefix) as broker:
                await apply(broker.connection, Topology(prefix=settings.prefix, partitions=settings.partitions))
                arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
                await broker.channel.declare_queue(peers_queue(settings), durable=True, arguments=arguments)
                try:
                    yield settings
                finally:
                    await broker.channel.queue_delete(peers_queue(settings))
                    await broker.delete_everything(settings.partitions)

    def worker(self, settings: Settings, teams: str = "tests.benchmarks.executors:everything", **more: str) -> Program:
        """`teamturn worker`, which is not started yet."""
        return self._program(["worker", "worker"], settings, TEAMTURN_TEAMS=teams, **more)

    def peer(self, module: str, settings: Settings, *arguments: str) -> Program:
        """A peer, a module of this package that consumes the peers' queue; not started yet."""
        return self.program(module, settings, peers_queue(settings), *arguments)

    def program(self, module: str, settings: Settings, *arguments: str, **more: str) -> Program:
        """A module of this package as a program, not started yet."""
        return self._program([f"tests.benchmarks.{module}", *arguments], settings, **more)

    def _program(self, words: Sequence[str], settings: Settings, **more: str) -> Program:
        log = self.logs / f"{words[0].rpartition('.')[2]}-{uuid.uuid4().hex[:8]}.log"
        return Program(words, environment_of(settings, **more), log)


def peers_queue(settings: Settings) -> str:
    """The queue that peers consume."""
    return f"{settings.prefix}.peers"


@asynccontextmanager
async def template_of(sandbox: Sandbox) -> AsyncIterator[str]:
    """The name of a migrated, empty database, for the block."""
    name = f"bench_template_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(sandbox.postgres_url)
    try:
        await admin.execute(f'create database "{name}"')
        url = SecretStr(str(URL(sandbox.postgres_url).with_path(f"/{name}")))
        connection = await connect(url, "ai", application="bench")
        await migrate(connection, "ai")
        await connection.close()
        yield name
        await admin.execute(f'drop database "{name}" with (force)')
    finally:
        await admin.close()
