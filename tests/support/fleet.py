"""Workers that come and go, each a process of the real command, on a stage of their own and under load."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import asyncpg
from pydantic import JsonValue, SecretStr
from typing_extensions import override

import sql
from schemas.fleet import FleetState
from tests.acceptance.stage import DATA, QUICKER, Gates, database_of_its_own, worker_on
from tests.support.broker import TestBroker
from tests.support.load import Load, sessions_of
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess
from worker.broker import connected
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.fleet.view import fleet_state, queue_depth
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.settings import Settings
from worker.worker import Worker

TEAMS = "elastic_teams:everything"


class Crew:
    """The workers of one prefix, each a process of the real command, that come and go."""

    def __init__(self, settings: Settings, gates: Gates | None = None) -> None:
        self._settings = settings
        self._gates = gates
        self._stack = AsyncExitStack()
        self._looking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._database = await connect(self._settings.postgres_url, self._settings.db_schema, application="crew")
        self._stack.push_async_callback(self._database.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def hire(self, settings: Settings | None = None, **environment: str) -> WorkerProcess:
        """Start a worker and wait until it has its place: it consumes its share, or stands by."""
        worker = worker_on(settings or self._settings, self._gates, teams=TEAMS, cwd=DATA, **environment)
        await self._stack.enter_async_context(worker)
        await worker.logged("worker_started")

        async def has_its_place() -> bool:
            shares = await self._shares()
            return worker.process.pid in shares and await self._are_consumed(shares[worker.process.pid])

        await eventually(has_its_place)
        return worker

    async def state(self) -> FleetState:
        """The fleet as `teamturn fleet` shows it."""
        topology = Topology(prefix=self._settings.prefix, partitions=self._settings.partitions)
        async with self._looking, connected(self._settings.amqp_url, name="crew") as broker:
            return await fleet_state(self._database, broker.amqp, topology)

    async def partitions_of(self, worker: WorkerProcess) -> list[int]:
        """What a worker is to consume now."""
        return (await self._shares()).get(worker.process.pid, [])

    async def settled(self, *workers: WorkerProcess, seconds: float = 20) -> None:
        """Wait until these are the fleet, each has its share of the partitions, and all of these are consumed."""

        async def as_they_should_be() -> bool:
            shares = await self._shares()
            sizes = [len(share) for share in shares.values()]
            return (
                shares.keys() == {worker.process.pid for worker in workers}
                and sum(sizes) == self._settings.partitions
                and max(sizes) - min(sizes) <= 1
                and await self._are_consumed(range(self._settings.partitions))
            )

        await eventually(as_they_should_be, seconds=seconds)

    async def _shares(self) -> dict[int, list[int]]:
        """What each worker, by its process id, is to consume now."""
        async with self._looking:
            live = await self._database.fetch(sql.LIST_FLEET, self._settings.prefix)
            # Not as the program reads it: the schema may be an older one.
            owned = "select owners from fleet_assignments where prefix = $1"
            owners = list(enumerate(await self._database.fetchval(owned, self._settings.prefix) or ()))
        return {
            int(one["worker"].rpartition(":")[2]): [number for number, owner in owners if owner == one["member"]]
            for one in live
        }

    async def _are_consumed(self, partitions: Iterable[int]) -> bool:
        topology = Topology(prefix=self._settings.prefix, partitions=self._settings.partitions)
        async with connected(self._settings.amqp_url, name="crew") as broker:
            depths = [await queue_depth(broker.amqp, topology.partition(number)) for number in partitions]
        return all(consumers for _, consumers in depths)


def a_session_of(partition: int, settings: Settings) -> str:
    """A session of a partition."""
    return sessions_of(partition, settings.partitions, number=1)[0]


@dataclass(frozen=True)
class Story:
    """What came of something that happened to a fleet under load."""

    pauses: dict[int, float]
    """Of the partitions it happened to, the longest time without an answer."""
    others: dict[int, float]
    """Of the other partitions."""
    session_pauses: dict[str, float]
    mistakes: list[str]
    repeated_turns: set[str]
    exit_codes: tuple[int, ...] = ()
    """Of the workers that were told to stop."""


@dataclass(frozen=True)
class Scene:
    """A fleet's stage: requests come, and workers can be hired."""

    settings: Settings
    database: asyncpg.Connection
    crew: Crew
    load: Load

    async def story(self, since: float, partitions: Collection[int], exit_codes: tuple[int, ...] = ()) -> Story:
        """Tell what came of what happened then to those partitions, once everything is answered."""
        await self.load.flows()
        await self.load.finish()
        pauses = self.load.pauses(since)
        return Story(
            pauses={partition: pause for partition, pause in pauses.items() if partition in partitions},
            others={partition: pause for partition, pause in pauses.items() if partition not in partitions},
            session_pauses=self.load.session_pauses(since),
            mistakes=await self.load.mistakes(self.database),
            repeated_turns=self.load.repeated_turns(),
            exit_codes=exit_codes,
        )


@asynccontextmanager
async def under_load(
    sandbox: Sandbox, template: str | None, *, amqp_url: str | None = None, team_id: str = "unhurried", ahead: int = 5
) -> AsyncIterator[Scene]:
    """A database and a prefix of its own, and requests that wait for the first worker."""
    async with AsyncExitStack() as stack:
        postgres_url = await stack.enter_async_context(database_of_its_own(sandbox, template))
        settings = Settings(
            amqp_url=SecretStr(amqp_url or sandbox.amqp_url),
            postgres_url=SecretStr(postgres_url),
            prefix=f"t-{uuid.uuid4().hex[:8]}",
            partitions=4,
            prefetch=8,  # fewer than the load's sessions have waiting in a partition
        )
        database = await connect(settings.postgres_url, settings.db_schema, application="test")
        stack.push_async_callback(database.close)
        stack.push_async_callback(_delete_everything, settings)
        async with connected(settings.amqp_url, name="test") as broker:
            await apply(broker.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))
        crew = await stack.enter_async_context(Crew(settings))
        load = await stack.enter_async_context(Load(settings, sessions_each=2, ahead=ahead, team_id=team_id))
        yield Scene(settings, database, crew, load)


async def _delete_everything(settings: Settings) -> None:
    async with TestBroker(settings.amqp_url.get_secret_value(), settings.prefix) as broker:
        await broker.delete_everything(settings.partitions)


class Supervised(WorkerProcess):
    """`teamturn worker --processes N` as a process of its own; what its workers log is among its lines."""

    def __init__(self, processes: int, settings: Settings, gates: Gates | None = None, **environment: str) -> None:
        if gates is not None:
            environment["TEST_GATES"] = str(gates.folder)
        super().__init__(settings, TEAMS, cwd=DATA, **QUICKER | {"TEAMTURN_DRAIN_TIMEOUT": "5"} | environment)
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        """Every worker process that was started, in that order."""
        return [event["pid"] for event in self.events("worker_process_started")]

    @override
    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "worker", "--processes", str(self._processes)),
            env=self._environment,
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._reading.done():
            # Its workers hold its standard error open.
            self.process.kill()
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await super().__aexit__(kind, error, trace)

    async def all_ended(self, *, seconds: float = 20) -> None:
        """Wait until its workers have ended as well."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._reading)


@executor("echo")
async def echo(turn: Turn) -> JsonValue:
    """For workers in the test's own process."""
    return turn.input


class Gate:
    """An executor for workers in the test's own process that holds its turns until it is opened."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.open = asyncio.Event()

        @executor("gate")
        async def gate(turn: Turn) -> JsonValue:
            self.started.append(turn.run_id)
            await self.open.wait()
            return turn.input

        self.executor = gate


class Looking:
    """The fleet as it is seen from outside."""

    def __init__(self, settings: Settings, database: asyncpg.Connection, broker: TestBroker) -> None:
        self._topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
        self._database = database
        self._broker = broker

    async def state(self) -> FleetState:
        return await fleet_state(self._database, self._broker.connection, self._topology)

    async def members(self) -> list[int]:
        return list(await self._database.fetchval(sql.READ_FLEET, self._topology.prefix))

    async def owners(self) -> list[int]:
        """The recorded owner of each partition."""
        record = await self._database.fetchrow(sql.READ_FLEET, self._topology.prefix)
        assert record is not None
        return list(record["owners"] or ())

    async def consumers(self) -> list[int | None]:
        """How many consumers each partition has."""
        return [one.consumers for one in (await self.state()).partitions]

    async def settled(self, *workers: Worker) -> None:
        """Wait until these are the fleet: each has its share, each partition one consumer, and they know of it."""

        async def shared_out() -> bool:
            consumed = [queue for worker in workers for queue in worker.consumers.consuming]
            return (
                len(await self.members()) == len(workers)
                and len(consumed) == len(set(consumed)) == self._topology.partitions + 1
                and all(worker.consumers.consuming == worker.consumers.wanted for worker in workers)
                and set(await self.consumers()) == {1}
            )

        await eventually(shared_out)
