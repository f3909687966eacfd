"""Fixtures: one RabbitMQ and one Postgres for all tests; a database and a prefix for each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import structlog
from pydantic import SecretStr
from yarl import URL

from tests.support.broker import TestBroker
from tests.support.databases import Databases
from tests.support.releases import Release, unpacked
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.sessions.migrations import migrate
from worker.settings import Settings

_TEMPLATE = "teamturn_template"

_BEGUN_IN_THIS_ORDER = (
    "acceptance/test_cut_off.py",
    "acceptance/test_postgres_restarts.py",
    "integration/test_postgres_away.py",
    "acceptance/test_elastic.py",
    "acceptance/test_sessions_command.py",
    "acceptance/test_durable_turns.py",
    "acceptance/test_chaos.py",
    "acceptance/test_supervisor.py",
    "acceptance/test_dead_letters.py",
    "acceptance/test_doctor.py",
    "integration/test_broker_away.py",
    "acceptance/",
    "integration/",
    "unit/",
)
"""What takes longest comes first, so that no process is left with it at the end; what is alike is in any order."""

# structlog's default draws an exception with all its variables, which takes up to seconds.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return next(place for place, part in enumerate((*_BEGUN_IN_THIS_ORDER, "")) if part in path)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(report=lambda line: print(line, flush=True)) as box:
        yield box


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The last version that was released, beside this one."""
    return unpacked(tmp_path_factory.mktemp("last"))


@pytest.fixture(scope="session")
def template(sandbox: Sandbox) -> str:
    """The name of a migrated, empty database to clone."""
    name = f"{_TEMPLATE}_{uuid.uuid4().hex[:8]}"

    async def make() -> None:
        admin = await asyncpg.connect(sandbox.postgres_url)
        await admin.execute(f'create database "{name}"')
        await admin.close()
        url = SecretStr(str(URL(sandbox.postgres_url).with_path(f"/{name}")))
        connection = await connect(url, "ai", application="template")
        await migrate(connection, "ai")
        await connection.close()

    asyncio.run(make())
    return name


@pytest.fixture(scope="session")
def databases(sandbox: Sandbox, template: str) -> Databases:
    """Where the tests' databases come from."""
    return Databases(sandbox.postgres_url, template)


@pytest.fixture
async def postgres_url(databases: Databases, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a migrated database of the test's own."""
    new = request.node.get_closest_marker("new_database") is not None
    async with databases.lent(new=new) as url:
        yield url


@pytest.fixture
def settings(sandbox: Sandbox, postgres_url: str) -> Settings:
    """Settings with a database and a prefix of the test's own, and few partitions: queues take time to declare."""
    return Settings(
        amqp_url=SecretStr(sandbox.amqp_url),
        postgres_url=SecretStr(postgres_url),
        prefix=f"t-{uuid.uuid4().hex[:8]}",
        partitions=2,
        prefetch=32,
        drain_timeout=5,
    )


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database, for looking."""
    connection = await connect(SecretStr(postgres_url), "ai", application="test")
    yield connection
    await connection.close()


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[TestBroker]:
    """A producer and consumer written against the contract, with nothing of teamturn's own client."""
    async with TestBroker(settings.amqp_url.get_secret_value(), settings.prefix) as broker:
        yield broker
        await broker.delete_everything(settings.partitions)
