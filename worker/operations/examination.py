"""Looking at a set-up for `teamturn doctor`: reads, and changes nothing. Each check is made, whatever became of others.

A check that fails, by whatever error, is a line; those that need it are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
from aio_pika.abc import AbstractConnection

import sql
from schemas.checks import Check, Verdict
from worker.broker import connected, host_and_port
from worker.certificates import postgres_is_verified, rabbitmq_is_verified
from worker.errors import BrokerUnavailable, StartupError, StoreUnavailable
from worker.executors.registry import load_executors
from worker.fleet.agreement import agrees
from worker.fleet.view import queue_depth
from worker.intake.topology import Topology, check_partitions, may_declare, verify
from worker.operations import doctor
from worker.operations.acknowledgement import Unreadable, acknowledgement_timeout
from worker.operations.pooling import close_quietly, look_at_connections
from worker.sessions.database import address, application_name, connect, servers_of
from worker.sessions.migrations import schema_state
from worker.settings import Settings, hosts_of

_LIMIT_SECONDS: Final = 30.0
"""What hangs for so long is a failure; each look at a server has a limit of its own below that."""
_BETWEEN_LOOKS_SECONDS: Final = 1.0
_CLOCK_READINGS: Final = 5

_Look = Callable[[str], Awaitable[Check]]


@dataclass(frozen=True, slots=True)
class _Planned:
    name: str
    look: _Look
    needs: tuple[str, ...] = ()


class Examination:
    """One look at everything that a worker with these settings would use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
        self._opened = AsyncExitStack()
        self._postgres: asyncpg.Connection | None = None
        self._rabbitmq: AbstractConnection | None = None

    async def checks(self) -> AsyncIterator[Check]:
        """Make all checks, one after the other."""
        verdicts: dict[str, Verdict] = {}
        async with self._opened:
            for planned in self._plan():
                unmet = [need for need in planned.needs if verdicts[need] in {Verdict.FAILURE, Verdict.SKIPPED}]
                check = doctor.skipped(planned.name, unmet[0]) if unmet else await _made(planned)
                verdicts[planned.name] = check.verdict
                yield check

    def _plan(self) -> tuple[_Planned, ...]:
        return (
            _Planned("settings", self._look_at_settings),
            _Planned("teams", self._look_at_teams),
            _Planned("postgres", self._look_at_postgres),
            _Planned("postgres tls", self._look_at_postgres_tls, ("postgres",)),
            _Planned("connections", self._look_at_connections, ("postgres",)),
            _Planned("schema", self._look_at_schema, ("postgres", "connections")),
            _Planned("fleet", self._look_at_fleet, ("schema",)),
            _Planned("lock table", self._look_at_lock_table, ("schema",)),
            _Planned("clock", self._look_at_clock, ("postgres",)),
            _Planned("rabbitmq", self._look_at_rabbitmq),
            _Planned("rabbitmq tls", self._look_at_rabbitmq_tls, ("rabbitmq",)),
            _Planned("topology", self._look_at_topology, ("rabbitmq",)),
            _Planned("acknowledgement", self._look_at_acknowledgement, ("rabbitmq",)),
            _Planned("results", self._look_at_results, ("rabbitmq",)),
            _Planned("dead letters", self._look_at_dead_letters, ("rabbitmq",)),
        )

    # What each check looks at.

    async def _look_at_settings(self, name: str) -> Check:
        return doctor.unknown_settings(name, Settings.without_effect(os.environ))

    async def _look_at_teams(self, name: str) -> Check:
        if not self._settings.teams.strip():
            example = "for a worker, set it to module:attribute, TEAMTURN_TEAMS=my_teams:teams say"
            return doctor.warning(name, "TEAMTURN_TEAMS is not set", example)
        # What users' modules print is not ours to pass off as a check.
        with contextlib.redirect_stdout(sys.stderr):
            found = load_executors(self._settings.teams)
        return doctor.ok(name, f"TEAMTURN_TEAMS names {', '.join(sorted(map(str, found)))}")

    async def _look_at_postgres(self, name: str) -> Check:
        self._postgres = await self._connection()
        self._opened.push_async_callback(close_quietly, self._postgres)
        version = self._postgres.get_server_version()
        # Of PostgreSQL's two numbers asyncpg makes three.
        return doctor.ok(
            name, f"PostgreSQL {version.major}.{version.micro} at {address(self._settings.postgres_url)} answers"
        )

    async def _look_at_postgres_tls(self, name: str) -> Check:
        return doctor.encryption(
            name,
            [host for host, _ in servers_of(self._settings.postgres_url)],
            protocol=await self._database.fetchval(sql.CONNECTION_ENCRYPTION),
            verified=postgres_is_verified(self._settings.postgres_url),
            advice="add sslmode=verify-full and sslrootcert= to TEAMTURN_POSTGRES_URL",
        )

    async def _look_at_connections(self, name: str) -> Check:
        return await look_at_connections(name, lambda: self._connection(lane=True))

    async def _look_at_schema(self, name: str) -> Check:
        schema = self._settings.db_schema
        found = await schema_state(self._database, schema)
        if not found.missing:
            known = sql.MIGRATIONS[-1].version
            as_is = (
                "as this program" if found.newest == known else f"and compatible with this program, which knows {known}"
            )
            return doctor.ok(name, f"{schema!r} is at version {found.newest}, {as_is}")
        state = "is older than this program" if found.has_tables else "has no tables of teamturn"
        return doctor.failure(name, f"{schema!r} {state}", "run teamturn migrate")

    async def _look_at_fleet(self, name: str) -> Check:
        if not await agrees(self._database, self._settings):
            return doctor.ok(name, f"no worker of prefix {self._settings.prefix!r} was started yet")
        of = f"{self._settings.partitions} partitions and a prefetch of {self._settings.prefetch}"
        return doctor.ok(name, f"{of}, as all workers of prefix {self._settings.prefix!r}; {await self._live()} live")

    async def _look_at_lock_table(self, name: str) -> Check:
        locks = int(await self._database.fetchval(sql.LOCK_TABLE))
        return doctor.lock_table(name, locks, await self._live(), self._settings.max_concurrent_turns)

    async def _look_at_clock(self, name: str) -> Check:
        readings = []
        for _ in range(_CLOCK_READINGS):
            before = time.time()
            theirs = (await self._database.fetchval(sql.READ_CLOCK)).timestamp()
            after = time.time()
            readings.append((after - before, theirs - (before + after) / 2))
        # The quickest answer says it most exactly.
        round_trip_seconds, offset_seconds = min(readings)
        return doctor.clock(name, offset_seconds, round_trip_seconds)

    async def _look_at_rabbitmq(self, name: str) -> Check:
        connection = connected(self._settings.amqp_url, name=application_name("doctor"))
        self._rabbitmq = (await self._opened.enter_async_context(connection)).amqp
        told = _told_by(self._rabbitmq)
        where = host_and_port(self._settings.amqp_url)
        return doctor.rabbitmq(name, where, told.get("product", "?"), told.get("version", "?"))

    async def _look_at_rabbitmq_tls(self, name: str) -> Check:
        return doctor.encryption(
            name,
            [host for host, _ in hosts_of(self._settings.amqp_url.get_secret_value())],
            # There is no way from amqps:// to a connection that is not.
            protocol="TLS" if urlsplit(self._settings.amqp_url.get_secret_value()).scheme == "amqps" else None,
            verified=rabbitmq_is_verified(self._settings.amqp_url),
            advice="give amqps:// and cafile= in TEAMTURN_AMQP_URL, without no_verify_ssl",
        )

    async def _look_at_topology(self, name: str) -> Check:
        objects = len(self._topology.exchanges()) + len(self._topology.queues())
        found = await verify(self._broker, self._topology)
        if len(found) == objects:
            advice = "run teamturn topology apply, or start a worker; or correct TEAMTURN_PREFIX"
            return doctor.failure(name, f"nothing of prefix {self._topology.prefix!r} is there", advice)
        compared = True
        if not found:
            # What is declared may be a part of what is there.
            await check_partitions(self._broker, self._topology)
            compared = await may_declare(self._broker, self._topology)
        seen = (
            "as declared" if compared else "there; this user may not declare, so that their properties are not compared"
        )
        fine = f"all exchanges and queues of prefix {self._topology.prefix!r} are {seen}"
        return doctor.problems(name, found, fine, "teamturn topology verify lists them, teamturn topology apply makes")

    async def _look_at_acknowledgement(self, name: str) -> Check:
        try:
            timeout_seconds = await acknowledgement_timeout(_told_by(self._broker).get("cluster_name", ""))
        except Unreadable as why:
            return doctor.acknowledgement(name, None, unreadable=str(why))
        return doctor.acknowledgement(name, timeout_seconds)

    async def _look_at_results(self, name: str) -> Check:
        queue = self._topology.results
        before, consumers = await queue_depth(self._broker, queue)
        after = before
        if before and not consumers:
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
            after, consumers = await queue_depth(self._broker, queue)
        if before is None or after is None:
            return doctor.skipped(name, queue)
        return doctor.results(name, queue, before, after, consumers or 0)

    async def _look_at_dead_letters(self, name: str) -> Check:
        count, _ = await queue_depth(self._broker, self._topology.dead)
        if count is None:
            return doctor.skipped(name, self._topology.dead)
        return doctor.dead_letters(name, self._topology.dead, count)

    # What they look with.

    @property
    def _database(self) -> asyncpg.Connection:
        assert self._postgres is not None  # noqa: S101 - for the type checker: the check before this one opened it
        return self._postgres

    @property
    def _broker(self) -> AbstractConnection:
        assert self._rabbitmq is not None  # noqa: S101 - for the type checker: the check before this one opened it
        return self._rabbitmq

    async def _connection(self, *, lane: bool = False) -> asyncpg.Connection:
        url, schema = self._settings.postgres_url, self._settings.db_schema
        return await connect(url, schema, application=application_name("doctor"), lane=lane)

    async def _live(self) -> int:
        """How many workers of the prefix live now."""
        return len(await self._database.fetch(sql.LIST_FLEET, self._settings.prefix))


async def _made(planned: _Planned) -> Check:
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            return await planned.look(planned.name)
    except (StartupError, StoreUnavailable, BrokerUnavailable) as error:
        return doctor.failure(planned.name, str(error))
    except TimeoutError:
        return doctor.failure(planned.name, f"no answer within {_LIMIT_SECONDS:g} s", "try again; look at its log")
    except Exception as error:  # noqa: BLE001 - a check that can't be made is a failure, and the others go on
        return doctor.failure(planned.name, f"it can't be looked at: {type(error).__name__}: {error}")


def _told_by(connection: AbstractConnection) -> dict[str, str]:
    """Return what the broker says of itself."""
    assert connection.transport is not None  # noqa: S101 - for the type checker: it is connected
    properties: dict[Any, Any] = dict(connection.transport.connection.server_properties)
    return {
        _plain(name): _plain(value) for name, value in properties.items() if isinstance(value, str | bytes | bytearray)
    }


def _plain(text: str | bytes | bytearray) -> str:
    return text if isinstance(text, str) else bytes(text).decode(errors="replace")
