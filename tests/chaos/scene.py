"""The scene: everything that plays a part, and what the faults ask of it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
from pydantic import SecretStr

import sql
from tests.acceptance.stage import QUICKER
from tests.chaos.crew import Crew, Place
from tests.chaos.lines import Line
from tests.chaos.load import Load, Session
from tests.chaos.plan import Plan
from tests.chaos.producer import Consumer, Producer, Watcher
from tests.chaos.stub import ModelStub
from tests.chaos.tally import Tally
from tests.chaos.teams import URL_VARIABLE
from tests.chaos.upsets import Upsets
from tests.support.load import partition_of
from tests.support.workers import environment_of
from worker.broker import connected
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox, SandboxError
from worker.sandbox.postgres import PostgresNode
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sessions.database import connect
from worker.sessions.migrations import migrate
from worker.settings import Settings

_LEDGER: Final = Path(__file__).with_name("ledger.sql")
_TEAMS: Final = "tests.chaos.teams:everything"
_DRAIN_SECONDS: Final = "5"


@dataclass
class Scene:
    """What the faults work on."""

    plan: Plan
    settings: Settings
    rabbitmq: RabbitmqNode
    postgres: PostgresNode
    postgres_log: Path
    crew: Crew
    stub: ModelStub
    producer: Producer
    producer_line: Line
    load: Load
    watcher: Watcher
    upsets: Upsets
    tally: Tally
    say: Callable[[str], None]
    servers: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one of the servers is away: one at a time."""
    _names: count[int] = field(default_factory=count)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of its own, for looking."""
        connection = await connect(self.settings.postgres_url, self.settings.db_schema, application="chaos")
        try:
            yield connection
        finally:
            connection.terminate()

    def tell(self, text: str) -> None:
        """Say it, and write it down."""
        self.say(text)
        self.tally.note(text)

    def new_session(self, name: str, team_id: str) -> Session:
        """A session that nobody else asks anything."""
        return self.load.session(f"{name}-{next(self._names)}", team_id)

    async def new_session_of(self, place: Place, name: str, team_id: str) -> Session | None:
        """The same, in a partition that the worker there is to consume now; None if it has none."""
        async with self.database() as database:
            live = await database.fetch(sql.LIST_FLEET, self.settings.prefix)
            recorded = await database.fetchrow(sql.READ_FLEET, self.settings.prefix)
        members = {one["member"] for one in live if (one["worker"] or "").endswith(f":{place.pid}")}
        owners = list(enumerate((recorded and recorded["owners"]) or ()))
        owned = {partition for partition, owner in owners if owner in members}
        if not owned:
            return None
        while partition_of(session_id := f"{name}-{next(self._names)}", self.settings.partitions) not in owned:
            pass
        return self.load.session(session_id, team_id)

    def any_place(self, rng: random.Random) -> Place | None:
        """A place with a worker, by chance."""
        return self.crew.any_place(rng)


@asynccontextmanager
async def scene(sandbox: Sandbox, plan: Plan, folder: Path, say: Callable[[str], None]) -> AsyncIterator[Scene]:
    """Set everything up for the block: a schema and a prefix, the model, the workers, a producer and a consumer."""
    if not isinstance(sandbox.rabbitmq, RabbitmqNode) or not isinstance(sandbox.postgres, PostgresNode):
        raise SandboxError("Chaos crashes its servers: it needs a RabbitMQ and a Postgres of its own.")
    settings = Settings(
        amqp_url=SecretStr(sandbox.amqp_url),
        postgres_url=SecretStr(sandbox.postgres_url),
        prefix=f"chaos-{uuid.uuid4().hex[:8]}",
    )
    await _prepare(settings)
    async with AsyncExitStack() as stack:
        upsets = Upsets()
        tally = Tally(folder / "events.log")
        stack.callback(tally.close)
        stub = await stack.enter_async_context(ModelStub(environment_of(settings)))
        line = await stack.enter_async_context(Line(sandbox.amqp_url))
        producer = Producer(line.url, settings.prefix)
        stack.push_async_callback(producer.close)
        load = Load(plan, producer, stub, tally)
        consumer = Consumer(sandbox.amqp_url, settings.prefix, load.heard)
        await stack.enter_async_context(consumer.listening())
        watcher = Watcher(sandbox.amqp_url, settings.prefix, upsets)
        await stack.enter_async_context(watcher.listening())
        environment = {
            "TEAMTURN_TEAMS": _TEAMS,
            "TEAMTURN_DRAIN_TIMEOUT": _DRAIN_SECONDS,
            URL_VARIABLE: stub.url,
            **QUICKER,
        }
        crew = await stack.enter_async_context(
            Crew(
                settings,
                places=plan.workers,
                environment=environment,
                folder=folder,
                reaper=sandbox.site.reaper,
                tally=tally,
                upsets=upsets,
                say=say,
            )
        )
        await crew.consuming()
        await watcher.ready.wait()
        servers = sandbox.rabbitmq, sandbox.postgres, sandbox.site.directory / "postgres.log"
        yield Scene(plan, settings, *servers, crew, stub, producer, line, load, watcher, upsets, tally, say)


async def _prepare(settings: Settings) -> None:
    database = await connect(settings.postgres_url, settings.db_schema, application="chaos")
    try:
        await migrate(database, settings.db_schema)
        await database.execute(await asyncio.to_thread(_LEDGER.read_text))
    finally:
        await database.close()
    async with connected(settings.amqp_url, name="chaos") as broker:
        await apply(broker.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))
