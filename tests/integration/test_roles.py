"""The roles of deploy/roles on real servers: each can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import pytest
import pytest_asyncio
from agno.db.base import SessionType
from agno.db.postgres import PostgresDb
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused
from pydantic import SecretStr
from yarl import URL

from schemas.replies import RunStatus
from schemas.requests import RunRequest
from tests.acceptance.stage import DATA, QUICKER, TEAMS, Gates, worker_on
from tests.support.broker import TestBroker, slot
from tests.support.own_servers import own_postgres, own_rabbitmq
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of, run_command
from worker.client import RunClient
from worker.fleet.readings import FleetReadings
from worker.sandbox.postgres import PostgresNode
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = "chat.v2"
"""Of a name in which a dot must be taken for a dot."""
SCHEMA = "Chat"
NEIGHBOUR = "chatxv2"
PASSWORD = "of-the-test"
ROLES = ("owner", "worker", "operator", "reader")
QUEUES = (*("requests.0", "requests.1", "unrouted", "control", "dead"), "results")


@dataclass
class Place:
    """A RabbitMQ and a Postgres with the roles, and nothing that another role may do."""

    amqp_url: URL
    postgres_url: URL
    server: PostgresNode
    gates: Gates
    admin: asyncpg.Connection
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = self.as_role("worker")

    def as_role(self, name: str) -> Settings:
        return Settings(
            amqp_url=SecretStr(self.amqp(name)),
            postgres_url=SecretStr(self.postgres(name)),
            prefix=PREFIX,
            db_schema=SCHEMA,
            partitions=2,
            prefetch=8,
            drain_timeout=5,
        )

    def amqp(self, role: str) -> str:
        return str(self.amqp_url.with_user(f"{PREFIX}-{role}").with_password(PASSWORD))

    def postgres(self, role: str) -> str:
        return str(self.postgres_url.with_user(f"teamturn_{role}").with_password(PASSWORD))

    async def teamturn(self, role: str, *words: str) -> tuple[int, str, str]:
        surroundings = environment_of(self.as_role(role), **QUICKER)
        return await run_command(*words, environment=surroundings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with own_rabbitmq() as rabbitmq, own_postgres() as postgres:
        assert isinstance(postgres, PostgresNode)
        await asyncio.gather(make_users(rabbitmq), make_roles(postgres))
        admin = await asyncpg.connect(postgres.url)
        for role in ROLES:
            await admin.execute(f"alter role teamturn_{role} password '{PASSWORD}'")
        found = Place(URL(rabbitmq.url), URL(postgres.url), postgres, Gates(tmp_path_factory.mktemp("gates")), admin)
        for words in (("migrate",), ("topology", "apply")):
            code, _, err = await found.teamturn("owner", *words)
            assert code == 0, err
        await make_roles(postgres)  # once more, now that there are tables
        yield found
        await admin.close()


async def make_users(node: RabbitmqNode) -> None:
    roles = ("OWNER", "WORKER", "PRODUCER", "GATEWAY", "CONSUMER", "OPERATOR")
    passwords = {f"{role}_PASSWORD": PASSWORD for role in roles}
    program = node._binaries.server.with_name("rabbitmqctl")
    environment = node._env | passwords | {"PREFIX": PREFIX, "RABBITMQCTL": str(program), "TMPDIR": str(node._home)}
    await ran(ROOT / "deploy" / "roles" / "rabbitmq.sh", environment=environment, cwd=node._home)


async def make_roles(server: PostgresNode, url: str | None = None, *, schema: str = SCHEMA, **names: str) -> str:
    script = ROOT / "deploy" / "roles" / "postgres.sql"
    psql = server._directory / "psql"
    if not psql.exists():
        pytest.skip(f"there is no psql beside {server._directory}")
    if schema != SCHEMA:
        names |= {role: f"{schema}_{role}" for role in ROLES}
    words = [word for name, value in ({"schema": schema} | names).items() for word in ("-v", f"{name}={value}")]
    return await ran(psql, url or server.url, "-q", *words, "-f", script, environment=dict(os.environ))


async def ran(*words: str | Path, environment: dict[str, str], cwd: Path = ROOT) -> str:
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


def a_request(text: str = "hello", *, team_id: str = "echo", **fields: object) -> RunRequest:
    return RunRequest.model_validate({"run_id": uuid.uuid4().hex, "team_id": team_id, "input": text} | fields)


# --- a worker with these rights, and those who talk to it ---


async def test_a_worker_sees_its_fleet(place: Place) -> None:
    readings = FleetReadings(place.settings.postgres_url, SCHEMA, PREFIX)
    await readings.look()
    assert None not in astuple(readings.last)


async def test_a_turn_is_taken_streamed_and_answered(place: Place) -> None:
    async with (
        worker_on(place.settings) as worker,
        RunClient(place.amqp("producer"), prefix=PREFIX) as producer,
        RunClient(place.amqp("gateway"), prefix=PREFIX) as gateway,
    ):
        await worker.consuming()
        reply = await producer.run(a_request())
        events = [event.type async for event in gateway.stream(a_request())]
    assert (reply.status, reply.content) == (RunStatus.COMPLETED, "hello")
    assert (events[0], events[-1]) == ("run_started", "run_finished")


async def test_a_turn_is_cancelled_by_its_producer_and_what_is_none_is_buried(place: Place) -> None:
    async with worker_on(place.settings, place.gates) as worker, RunClient(place.amqp("producer"), prefix=PREFIX) as it:
        await worker.consuming()
        request = a_request("cancelled", team_id="gated")
        waiting = asyncio.create_task(it.run(request))
        await place.gates.reached("cancelled")
        await it.cancel(request.run_id)
        assert (await waiting).status is RunStatus.CANCELLED
        async with TestBroker(place.amqp("producer"), PREFIX) as producer:
            await producer.publish(b"no request", routing_key="00")
        await worker.logged("request_dead_lettered")
        await eventually(lambda: dead_letters(place, 1))
    code, out, _ = await place.teamturn("operator", "dead", "drop", "--all", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "1 dropped")


async def dead_letters(place: Place, number: int) -> bool:
    async with TestBroker(place.amqp("operator"), PREFIX) as operator:
        return await operator.depth("dead") == number


async def test_of_two_workers_one_dies_and_the_other_finishes_its_turn(place: Place) -> None:
    async with worker_on(place.settings, place.gates) as first:
        await first.consuming()
        async with RunClient(place.amqp("producer"), prefix=PREFIX) as producer:
            answered = asyncio.create_task(producer.run(a_request("killed", team_id="gated")))
            await place.gates.reached("killed")
            async with worker_on(place.settings, place.gates) as second:
                await second.consuming()
                first.kill()
                await place.gates.reached("killed", times=2)
                place.gates.open("killed")
                assert (await answered).status is RunStatus.COMPLETED


async def test_a_consumer_reads_the_results_and_an_operator_edits_the_sessions(place: Place) -> None:
    session = f"edited-{uuid.uuid4().hex}"
    async with worker_on(place.settings) as worker, TestBroker(place.amqp("producer"), PREFIX) as producer:
        await worker.consuming()
        run_id = await producer.ask(session)
        async with TestBroker(place.amqp("consumer"), PREFIX) as consumer:
            assert (await consumer.reply(run_id))["content"] == "hello"
    assert (await place.teamturn("operator", "sessions", "rename", session, "Groceries"))[0] == 0
    code, out, _ = await place.teamturn("reader", "sessions", "show", session, "--json")
    assert (code, json.loads(out)["session_data"]["session_name"]) == (0, "Groceries")
    assert len(await asyncio.to_thread(runs_as_agno_sees_them, place.postgres("reader"), session)) == 1
    assert (await place.teamturn("operator", "sessions", "delete", session, "--yes"))[0] == 0
    code, _, err = await place.teamturn("operator", "sessions", "prune", "--older-than", "1d", "--yes")
    assert (code, err) == (0, "")
    assert await place.admin.fetchval(f'select count(*) from "{SCHEMA}".agno_runs where session_id = $1', session) == 0  # noqa: S608 - ours


def runs_as_agno_sees_them(url: str, session_id: str) -> list[Any]:
    """What AgentOS shows of a session, with the same class."""
    db = PostgresDb(db_url=url.replace("postgresql://", "postgresql+psycopg://"), db_schema=SCHEMA)
    try:
        session = db.get_session(session_id, SessionType.TEAM)
        return list(session.runs)
    finally:
        db.close()


async def test_doctor_finds_nothing_wrong_as_a_worker(place: Place) -> None:
    code, out, _ = await place.teamturn("worker", "doctor", "--json")
    checks = {check["name"]: check for check in map(json.loads, out.splitlines())}
    assert (code, checks["topology"]["verdict"], checks["schema"]["verdict"]) == (0, "ok", "ok")
    assert "may not declare" in checks["topology"]["says"]


async def test_whether_all_is_as_it_should_be_its_owner_sees_and_a_worker_only_that_it_is_there(place: Place) -> None:
    for role, says in (("owner", "are as they should be"), ("worker", "no more can be seen")):
        code, out, err = await place.teamturn(role, "topology", "verify")
        assert (code, says in out) == (0, True), err


async def test_where_something_is_missing_a_worker_says_who_must_declare_it(place: Place) -> None:
    elsewhere = environment_of(place.settings, **QUICKER, TEAMTURN_PREFIX=NEIGHBOUR, TEAMTURN_TEAMS=TEAMS)
    code, _, err = await run_command("worker", environment=elsewhere, cwd=DATA)
    assert code == 2
    assert "topology apply, as a user who may declare" in err
    assert PASSWORD not in err


# --- what each can't do ---

MAY_READ = {
    "consumer": {"results"},
    "operator": {"dead"},
    "worker": {"requests.0", "requests.1", "unrouted", "control"},
}


@pytest.mark.parametrize("role", ["producer", "gateway", "consumer", "operator", "worker"])
async def test_a_role_reads_no_queue_but_its_own(place: Place, role: str) -> None:
    async with TestBroker(place.amqp(role), PREFIX) as broker:
        refused = {name for name in QUEUES if await is_refused(broker, partial(consume, name))}
    assert refused == set(QUEUES) - MAY_READ.get(role, set())


@pytest.mark.parametrize("role", ["producer", "gateway", "consumer", "operator", "worker"])
async def test_a_role_declares_and_deletes_nothing(place: Place, role: str) -> None:
    async with TestBroker(place.amqp(role), PREFIX) as broker:
        assert await is_refused(broker, lambda c: c.declare_queue(f"{PREFIX}.more", durable=True))
        assert await is_refused(broker, lambda c: c.queue_delete(f"{PREFIX}.results"))
        assert await is_refused(broker, lambda c: c.exchange_delete(f"{PREFIX}.requests"))


@pytest.mark.parametrize("role", ["producer", "gateway", "consumer"])
@pytest.mark.parametrize("exchange", ["results", "events", "unrouted", ""])
async def test_a_role_publishes_no_reply_and_no_event_in_the_name_of_a_worker(
    place: Place, role: str, exchange: str
) -> None:
    name = f"{PREFIX}.{exchange}" if exchange else ""
    async with TestBroker(place.amqp(role), PREFIX) as broker:
        assert await is_refused(broker, lambda c: publish(c, name, f"{PREFIX}.results"))


async def test_a_producer_watches_no_events(place: Place) -> None:
    async with TestBroker(place.amqp("producer"), PREFIX) as broker:
        assert await is_refused(broker, watch)


async def test_a_dot_in_the_prefix_opens_no_other_prefix(place: Place) -> None:
    async with TestBroker(place.amqp("worker"), PREFIX) as broker:
        assert await is_refused(broker, lambda c: publish(c, f"{NEIGHBOUR}.requests", slot("s")))


async def is_refused(broker: TestBroker, act: Callable[[AbstractChannel], Awaitable[object]]) -> bool:
    """Whether the broker closes the channel of it: ACCESS_REFUSED."""
    channel = await broker.connection.channel(publisher_confirms=True)
    try:
        await act(channel)
    except ChannelAccessRefused:
        return True
    finally:
        await channel.close()
    return False


async def consume(name: str, channel: AbstractChannel) -> None:
    queue = await channel.get_queue(f"{PREFIX}.{name}", ensure=False)
    await queue.consume(left_alone)


async def left_alone(message: AbstractIncomingMessage) -> None:
    """What is not acknowledged is given back with its channel."""


async def publish(channel: AbstractChannel, exchange: str, key: str) -> None:
    target = channel.default_exchange if not exchange else await channel.get_exchange(exchange, ensure=False)
    await target.publish(aio_pika.Message(b"{}"), key, mandatory=False, timeout=5)


async def watch(channel: AbstractChannel) -> None:
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(f"{PREFIX}.events", "#")


FORBIDDEN = {
    "worker": (
        "delete from agno_sessions",
        "update agno_runs set run_data = '{}'",
        "update receipts set reply = ''",
        "drop table agno_sessions",
        "alter table agno_sessions add column more text",
        "create table more (id integer)",
        "create or replace function session_lock_key(session_id text) returns bigint language sql return 1",
        "truncate agno_runs",
        "update teamturn_migrations set version = 99",
        "delete from teamturn_compatible_migrations",
        "insert into teamturn_compatible_migrations values (99, 'of nobody', 99)",
    ),
    "operator": ("drop table receipts", "create table more (id integer)", "delete from teamturn_migrations"),
    "reader": (
        "update agno_sessions set user_id = 'me'",
        "insert into receipts select * from receipts",
        "delete from turn_steps",
        "create table more (id integer)",
    ),
}


@pytest.mark.parametrize(("role", "statement"), [(role, one) for role, all_ in FORBIDDEN.items() for one in all_])
async def test_what_a_role_may_not_do_postgres_refuses(place: Place, role: str, statement: str) -> None:
    connection = await asyncpg.connect(place.postgres(role), server_settings={"search_path": f'"{SCHEMA}"'})
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_roles_are_made_also_by_who_is_no_superuser_and_an_owner_that_was_there_is_named() -> None:
    """From PostgreSQL 16 on, who makes a role can't become it without more."""
    async with own_postgres() as server:
        assert isinstance(server, PostgresNode)
        admin = await asyncpg.connect(server.url)
        await admin.execute("create role boss login createrole password 'of-the-test'")
        await admin.execute("create database theirs owner boss")
        await admin.execute("create schema there")
        theirs = str(URL(server.url).with_user("boss").with_password(PASSWORD).with_path("/theirs"))
        for _ in range(2):
            assert "belongs to" not in await make_roles(server, url=theirs, schema="new")
        assert f"belongs to {URL(server.url).user}" in await make_roles(server, schema="there")
        await admin.close()


async def test_no_function_runs_with_its_owner_s_rights(place: Place) -> None:
    """So that nobody's search_path leads the names in one elsewhere, with rights that they lack."""
    found = await place.admin.fetch(
        "select proname from pg_proc where prosecdef and pronamespace = $1::text::regnamespace", f'"{SCHEMA}"'
    )
    assert found == []


async def test_nobody_but_the_owner_makes_anything_where_names_are_looked_up(place: Place) -> None:
    for role in ("worker", "operator", "reader"):
        allowed = await place.admin.fetchval(
            "select has_schema_privilege($1, $2, 'create')", f"teamturn_{role}", SCHEMA
        )
        assert not allowed


async def test_one_who_is_no_superuser_makes_the_roles_too_under_other_names(place: Place) -> None:
    """One who may make roles, and owns the database: all that a managed Postgres gives."""
    owner, worker = "other_owner", "other_worker"
    await place.admin.execute(f"create role landlord login createrole password '{PASSWORD}'")
    await place.admin.execute("create database rented owner landlord")
    url = place.postgres_url.with_user("landlord").with_password(PASSWORD).with_path("/rented")
    names = {"owner": owner, "worker": worker, "operator": "other_operator", "reader": "other_reader"}
    await make_roles(place.server, str(url), **names)
    for role in (owner, worker):
        await place.admin.execute(f"alter role {role} password '{PASSWORD}'")
    migrated = environment_of(place.settings) | {"TEAMTURN_POSTGRES_URL": str(url.with_user(owner))}
    code, _, err = await run_command("migrate", environment=migrated)
    assert code == 0, err
    await make_roles(place.server, str(url), **names)
    connection = await asyncpg.connect(str(url.with_user(worker)), server_settings={"search_path": f'"{SCHEMA}"'})
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("delete from agno_sessions")
    assert await connection.fetchval("select count(*) from agno_sessions") == 0
    await connection.close()


@pytest.mark.slow
async def test_the_owner_changes_the_partitions_and_a_request_that_waits_is_answered_then(place: Place) -> None:
    async with worker_on(place.settings) as worker:
        await worker.consuming()
    async with TestBroker(place.amqp("producer"), PREFIX) as producer:
        run_id = await producer.ask(f"moved-{uuid.uuid4().hex}")
    await eventually(lambda: nobody_is_connected_as_a_lane(place))
    for partitions in ("3", "2"):
        code, _, err = await place.teamturn("owner", "topology", "repartition", "--partitions", partitions)
        assert code == 0, err
    async with (
        worker_on(place.settings) as worker,
        TestBroker(place.amqp("consumer"), PREFIX) as consumer,
    ):
        await worker.consuming()
        assert (await consumer.reply(run_id))["content"] == "hello"


async def nobody_is_connected_as_a_lane(place: Place) -> bool:
    lanes = "select count(*) from pg_stat_activity where application_name like 'teamturn lane%'"
    return bool(await place.admin.fetchval(lanes) == 0)
