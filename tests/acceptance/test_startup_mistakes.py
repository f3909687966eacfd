"""Every mistake that an operator can make at the start is one line that says what to do, and exit code 2."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from tests.acceptance.stage import DATA, QUICKER, TEAMS, database_of_its_own, two_at_a_time, worker_on
from tests.support.broker import TestBroker
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of, run_command, run_console_script
from worker.sandbox import Sandbox
from worker.settings import Settings

SECRET = "s3cret-hunter2"
MISTAKE = 2
NOBODY_LISTENS = 1
WHAT_TO_LOOK_AT = "is it running|TEAMTURN_(AMQP|POSTGRES)_URL"

Ended = tuple[int, str, str]


async def the_line(settings: Settings, *command: str, **environment: str) -> str:
    """Run a command, a worker if none is given; return its one line of complaint, after looking at its form."""
    surroundings = right_environment(settings) | environment
    return only_line(await run_command(*(command or ("worker",)), environment=surroundings, cwd=DATA, seconds=30))


def right_environment(settings: Settings) -> dict[str, str]:
    """The environment of a worker that would start, without anything that it could remark on."""
    right = environment_of(settings, TEAMTURN_TEAMS=TEAMS) | QUICKER
    right.pop("TEAMTURN_HTTP_PORT", None)
    return right


def only_line(ended: Ended) -> str:
    code, out, err = ended
    assert "Traceback" not in err, err
    assert len(err.splitlines()) == 1, err
    assert (code, out) == (MISTAKE, ""), err
    line = err.strip()
    assert SECRET not in line
    return line


async def _each_started(
    sandbox: Sandbox, template: str, environments: Mapping[str, Mapping[str, str]], cwd: Path
) -> dict[str, Ended]:
    """Start a worker in each of the environments, which differ from one that is right in what they say."""
    async with database_of_its_own(sandbox, template) as postgres_url:
        settings = Settings(
            amqp_url=SecretStr(sandbox.amqp_url), postgres_url=SecretStr(postgres_url), prefix="t-wrong"
        )
        right = right_environment(settings)
        return await two_at_a_time(
            {
                name: partial(run_command, "worker", environment={**right, **environment}, cwd=cwd, seconds=30)
                for name, environment in environments.items()
            }
        )


# --- settings ---


WRONG_SETTINGS = [
    ("PARTITIONS", "0"),
    ("PARTITIONS", "abc"),
    ("REPLY_TO_PATTERN", "("),
    ("DB_SCHEMA", "ai; drop schema ai"),
    ("AMQP_URL", f"http://user:{SECRET}@localhost:5672/"),
    ("AMQP_URL", f"amqp://user:{SECRET}@localhost:99999/"),
    ("AMQP_URL", f"amqp://user:{SECRET}#1@localhost:5672/"),
    ("POSTGRES_URL", f"mysql://user:{SECRET}@localhost/app"),
    ("POSTGRES_URL", f"postgresql://user:{SECRET}@localhost:99999/app"),
    ("POSTGRES_URL", f"postgresql://user:{SECRET}#1@localhost:5432/app"),
]


@pytest.fixture(scope="module")
def wrong_settings(sandbox: Sandbox, template: str) -> dict[str, Ended]:
    """What became of a worker with each of the wrong settings."""
    return asyncio.run(
        _each_started(
            sandbox, template, {f"{name}={value}": {f"TEAMTURN_{name}": value} for name, value in WRONG_SETTINGS}, DATA
        )
    )


@pytest.mark.parametrize(("name", "value"), WRONG_SETTINGS)
def test_a_wrong_setting_is_named(wrong_settings: dict[str, Ended], name: str, value: str) -> None:
    assert f"TEAMTURN_{name}" in only_line(wrong_settings[f"{name}={value}"])


# --- servers ---


async def test_a_rabbitmq_that_is_not_there_is_named(settings: Settings) -> None:
    line = await the_line(settings, TEAMTURN_AMQP_URL=f"amqp://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/")
    assert re.search(r"RabbitMQ .*127\.0\.0\.1:1\b", line)
    assert re.search(WHAT_TO_LOOK_AT, line)


async def test_a_postgres_that_is_not_there_is_named(settings: Settings) -> None:
    line = await the_line(settings, TEAMTURN_POSTGRES_URL=f"postgresql://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/app")
    assert re.search(r"Postgres .*127\.0\.0\.1:1\b", line)
    assert re.search(WHAT_TO_LOOK_AT, line)


@pytest.mark.parametrize("command", ["topology verify", "ask hello --team echo"])
async def test_a_command_names_a_rabbitmq_that_is_not_there(settings: Settings, command: str) -> None:
    url = f"amqp://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/"
    line = await the_line(settings, *command.split(), TEAMTURN_AMQP_URL=url)
    assert re.search(r"RabbitMQ .*127\.0\.0\.1:1\b", line)
    assert re.search(WHAT_TO_LOOK_AT, line)


async def test_a_command_names_a_postgres_that_is_not_there(settings: Settings) -> None:
    url = f"postgresql://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/app"
    line = await the_line(settings, "sessions", "list", TEAMTURN_POSTGRES_URL=url)
    assert re.search(r"Postgres .*127\.0\.0\.1:1\b", line)
    assert re.search(WHAT_TO_LOOK_AT, line)


async def test_a_wrong_password_for_rabbitmq_is_said_and_not_shown(settings: Settings) -> None:
    wrong = URL(settings.amqp_url.get_secret_value()).with_password(SECRET)
    line = await the_line(settings, TEAMTURN_AMQP_URL=str(wrong))
    assert "TEAMTURN_AMQP_URL" in line
    assert "password" in line


async def test_a_wrong_password_for_postgres_is_said_and_not_shown(settings: Settings) -> None:
    wrong = URL(settings.postgres_url.get_secret_value()).with_password(SECRET)
    line = await the_line(settings, TEAMTURN_POSTGRES_URL=str(wrong))
    assert "TEAMTURN_POSTGRES_URL" in line
    assert "password" in line


async def test_an_unknown_database_is_named(settings: Settings) -> None:
    unknown = URL(settings.postgres_url.get_secret_value()).with_path("/no_such_database")
    line = await the_line(settings, TEAMTURN_POSTGRES_URL=str(unknown))
    assert "no_such_database" in line


async def test_an_unknown_virtual_host_is_named(settings: Settings) -> None:
    unknown = URL(settings.amqp_url.get_secret_value()).with_path("/no-such-vhost")
    line = await the_line(settings, TEAMTURN_AMQP_URL=str(unknown))
    assert "no-such-vhost" in line


async def test_a_role_without_rights_on_the_schema_is_said(settings: Settings, database: asyncpg.Connection) -> None:
    role = f"no_rights_{settings.prefix.removeprefix('t-')}"
    await database.execute(f"create role {role} login password '{SECRET}'")
    try:
        url = URL(settings.postgres_url.get_secret_value()).with_user(role).with_password(SECRET)
        line = await the_line(settings, TEAMTURN_POSTGRES_URL=str(url))
    finally:
        await database.execute(f"drop role {role}")
    assert "'ai'" in line or role in line


# --- topology ---


async def test_a_classic_queue_is_named_with_an_argument(settings: Settings, broker: TestBroker) -> None:
    name = f"{settings.prefix}.requests.0"
    await broker.channel.declare_queue(name, durable=True)
    line = await the_line(settings)
    assert f"queue '{name}'" in line
    # Which of the arguments that it lacks is for RabbitMQ to choose.
    assert re.search(r"\bx-[a-z-]+", line)


async def test_a_queue_with_another_argument_is_named_with_it(settings: Settings, broker: TestBroker) -> None:
    name = f"{settings.prefix}.requests.1"
    ours: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": 1_000_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{settings.prefix}.dead",
    }
    await broker.channel.declare_queue(name, durable=True, arguments=ours | {"x-single-active-consumer": False})
    line = await the_line(settings)
    assert f"queue '{name}'" in line
    assert "x-single-active-consumer" in line


async def test_an_exchange_of_another_type_is_named_with_its_argument(settings: Settings, broker: TestBroker) -> None:
    name = f"{settings.prefix}.results"
    await broker.channel.declare_exchange(name, aio_pika.ExchangeType.DIRECT, durable=True)
    line = await the_line(settings)
    assert f"exchange '{name}'" in line
    assert "type" in line


# --- the schema ---


@pytest.mark.parametrize("command", ["worker", "sessions list"])
async def test_a_database_without_the_schema_is_told_to_migrate(
    sandbox: Sandbox, settings: Settings, command: str
) -> None:
    async with database_of_its_own(sandbox, template=None) as empty:
        line = await the_line(settings, *command.split(), TEAMTURN_POSTGRES_URL=empty)
    assert "teamturn migrate" in line


async def test_an_older_schema_is_told_to_migrate(settings: Settings, database: asyncpg.Connection) -> None:
    await database.execute(
        "delete from ai.teamturn_migrations where version = (select max(version) from ai.teamturn_migrations)"
    )
    line = await the_line(settings)
    assert "teamturn migrate" in line


async def test_a_newer_schema_is_not_touched(settings: Settings, database: asyncpg.Connection) -> None:
    await database.execute("insert into ai.teamturn_migrations (version, name) values (9999, 'from the future')")
    line = await the_line(settings)
    assert "9999" in line


# --- what is agreed on for a prefix ---


@pytest.mark.parametrize("name", ["PARTITIONS", "PREFETCH"])
async def test_other_values_than_are_recorded_for_the_prefix_are_refused(
    settings: Settings,
    broker: TestBroker,  # noqa: ARG001 - it deletes the queues afterwards
    name: str,
) -> None:
    async with worker_on(settings) as first:
        await first.consuming()
    line = await the_line(settings, **{f"TEAMTURN_{name}": "3"})
    assert f"TEAMTURN_{name}" in line
    assert str(getattr(settings, name.lower())) in line


# --- TEAMS ---

MODULES = {
    "raises.py": "raise KeyError('OPENAI_API_KEY')",
    "exits.py": "import sys\nsys.exit('set OPENAI_API_KEY first')",
    "misspelled.py": "def team(:\n    pass",
    "tells.py": "import os\nraise RuntimeError('no luck with ' + os.environ['SOME_API_KEY'])",
    "objects.py": (
        "from teamturn import Turn, executor\n"
        "@executor('twice')\nasync def one(turn: Turn) -> str: ...\n"
        "@executor('twice')\nasync def two(turn: Turn) -> str: ...\n"
        "number = 42\nnothing = []\n"
    ),
}


WRONG_TEAMS = [
    ("", "TEAMTURN_TEAMS"),
    ("objects", "module:attribute"),
    ("no_such_module:team", "no_such_module"),
    ("objects:missing", "missing"),
    ("raises:team", "KeyError: 'OPENAI_API_KEY'"),
    ("exits:team", "OPENAI_API_KEY"),
    ("misspelled:team", "misspelled.py"),
    ("tells:team", "no luck with"),
    ("objects:number", "objects:number"),
    ("objects:nothing", "objects:nothing"),
    ("objects:one,objects:two", "twice"),
]


@pytest.fixture(scope="module")
def wrong_teams(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What became of a worker with each of the wrong TEAMS, in a working directory with the modules above."""
    folder = tmp_path_factory.mktemp("teams")
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    environments = {teams: {"TEAMTURN_TEAMS": teams, "SOME_API_KEY": SECRET} for teams, _ in WRONG_TEAMS}
    return asyncio.run(_each_started(sandbox, template, environments, folder))


@pytest.mark.parametrize(("teams", "said"), WRONG_TEAMS)
def test_wrong_teams_are_named(wrong_teams: dict[str, Ended], teams: str, said: str) -> None:
    line = only_line(wrong_teams[teams])
    assert "TEAMTURN_TEAMS" in line
    assert said in line


# --- modules that hide ours ---


@pytest.mark.parametrize("package", ["worker", "schemas", "sql"])
async def test_a_module_that_hides_one_of_ours_is_named(settings: Settings, tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("")
    environment = right_environment(settings) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    line = only_line(await run_console_script("worker", environment=environment, cwd=DATA))
    assert f"{package!r}" in line
    assert str(tmp_path) in line


async def test_a_module_of_that_name_in_the_working_directory_hides_nothing(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "schemas.py").write_text("")
    code, out, err = await run_console_script("--help", environment=right_environment(settings), cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "worker" in out


async def test_a_rabbitmq_that_goes_away_during_the_start_is_one_line(settings: Settings, broker: TestBroker) -> None:
    async with Proxy(settings.amqp_url.get_secret_value()) as line:
        cut = settings.model_copy(update={"amqp_url": SecretStr(line.url)})
        starting = asyncio.create_task(the_line(cut, TEAMTURN_PARTITIONS="256"))
        await eventually(lambda: _is_declared(broker, "dead"))
        line.cut()
        assert "the connection to RabbitMQ was lost" in await starting
    await broker.delete_everything(256)


async def _is_declared(broker: TestBroker, queue: str) -> bool:
    try:
        await broker.depth(queue)
    except aio_pika.exceptions.ChannelClosed:
        return False
    return True


async def test_a_postgres_that_goes_away_during_the_start_is_one_line(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with Proxy(settings.postgres_url.get_secret_value()) as line, database.transaction():
        await database.execute("lock table ai.fleet_settings")
        cut = settings.model_copy(update={"postgres_url": SecretStr(line.url)})
        starting = asyncio.create_task(the_line(cut))
        await eventually(lambda: _somebody_waits(database))
        line.cut()
        assert "the connection to Postgres was lost" in await starting


async def _somebody_waits(database: asyncpg.Connection) -> bool:
    waiting = "select count(*) from pg_locks where not granted and relation = 'ai.fleet_settings'::regclass"
    return bool(await database.fetchval(waiting))
