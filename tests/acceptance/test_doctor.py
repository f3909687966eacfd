"""`teamturn doctor`: each thing that can be wrong with a set-up is a line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

import sql
from tests.acceptance.stage import DATA, QUICKER, TEAMS, database_of_its_own
from tests.support.broker import TestBroker
from tests.support.pgbouncer import pgbouncer
from tests.support.workers import environment_of, run_command
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.settings import Settings

SECRET = "s3cret-hunter2"
FINE, FAILED, MISTAKE = 0, 1, 2
NOBODY_LISTENS = 1
NAMES = [
    *("settings", "teams", "postgres", "postgres tls", "connections", "schema", "fleet", "lock table", "clock"),
    *("rabbitmq", "rabbitmq tls", "topology", "acknowledgement", "results", "dead letters"),
]

Checks = dict[str, dict[str, Any]]


@pytest.fixture
async def declared(settings: Settings, broker: TestBroker) -> Settings:
    """Settings with which a worker would start."""
    await apply(broker.connection, Topology(prefix=settings.prefix, partitions=settings.partitions))
    return settings


async def run_doctor(settings: Settings, *options: str, **environment: str) -> tuple[int, str]:
    right = environment_of(settings, **QUICKER, TEAMTURN_TEAMS=TEAMS, NO_COLOR="1")
    code, out, err = await run_command("doctor", *options, environment=right | environment, cwd=DATA)
    assert "Traceback" not in out + err
    assert SECRET not in out + err
    return code, out


async def checked(settings: Settings, *, code: int, **environment: str) -> Checks:
    """What each check found."""
    ended, out = await run_doctor(settings, "--json", **environment)
    checks = [json.loads(line) for line in out.splitlines()]
    assert [check["name"] for check in checks] == NAMES
    failed = [check for check in checks if check["verdict"] == "failure"]
    assert (ended, bool(failed)) == (code, code == FAILED), failed
    return {check["name"]: check for check in checks}


def wrong(checks: Checks) -> dict[str, str]:
    """The verdicts of all that are not ok."""
    return {name: check["verdict"] for name, check in checks.items() if check["verdict"] != "ok"}


# --- as it should be ---


async def test_a_set_up_as_it_should_be_is_all_ok(declared: Settings) -> None:
    assert wrong(await checked(declared, code=FINE)) == {}


async def test_a_line_is_a_check(declared: Settings) -> None:
    code, out = await run_doctor(declared)
    lines = out.splitlines()
    assert code == FINE
    assert [line[9:26].strip() for line in lines] == NAMES
    assert {line.split()[0] for line in lines} == {"ok"}


async def test_it_names_the_versions(declared: Settings, broker: TestBroker, database: asyncpg.Connection) -> None:
    checks = await checked(declared, code=FINE)
    assert ".".join(map(str, broker.version)) in checks["rabbitmq"]["says"]
    assert f"PostgreSQL {database.get_server_version().major}" in checks["postgres"]["says"]


async def test_it_changes_nothing(settings: Settings, broker: TestBroker, database: asyncpg.Connection) -> None:
    await checked(settings, code=FAILED)
    assert await database.fetchval("select count(*) from fleet_settings") == 0
    channel = await broker.connection.channel()
    with pytest.raises(Exception, match="NOT_FOUND"):
        await channel.declare_queue(f"{settings.prefix}.dead", passive=True)


# --- what can't be reached ---


async def test_a_rabbitmq_that_is_not_there_fails_and_what_needs_it_is_skipped(declared: Settings) -> None:
    url = f"amqp://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/"
    checks = await checked(declared, code=FAILED, TEAMTURN_AMQP_URL=url)
    needs_it = ("rabbitmq tls", "topology", "acknowledgement", "results", "dead letters")
    assert wrong(checks) == {"rabbitmq": "failure"} | dict.fromkeys(needs_it, "skipped")
    assert "127.0.0.1:1" in checks["rabbitmq"]["says"]
    assert "rabbitmq" in checks["topology"]["says"]


async def test_a_postgres_that_is_not_there_fails_and_what_needs_it_is_skipped(declared: Settings) -> None:
    url = f"postgresql://user:{SECRET}@127.0.0.1:{NOBODY_LISTENS}/app"
    checks = await checked(declared, code=FAILED, TEAMTURN_POSTGRES_URL=url)
    needs_it = ("postgres tls", "connections", "schema", "fleet", "lock table", "clock")
    assert wrong(checks) == {"postgres": "failure"} | dict.fromkeys(needs_it, "skipped")
    assert "127.0.0.1:1" in checks["postgres"]["says"]


async def test_a_wrong_password_is_named(declared: Settings) -> None:
    url = declared.amqp_url.get_secret_value().replace("@", f"{SECRET}@", 1)
    checks = await checked(declared, code=FAILED, TEAMTURN_AMQP_URL=url)
    assert "password of TEAMTURN_AMQP_URL" in checks["rabbitmq"]["says"]


async def test_a_server_that_says_nothing_is_a_failure(declared: Settings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://user@127.0.0.1:{port}/app"
        checks = await checked(declared, code=FAILED, TEAMTURN_POSTGRES_URL=url)
    assert checks["postgres"]["verdict"] == "failure"


async def test_a_wrong_setting_ends_it_with_a_line(declared: Settings) -> None:
    environment = environment_of(declared, **QUICKER, TEAMTURN_PARTITIONS="many")
    code, out, err = await run_command("doctor", environment=environment)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "TEAMTURN_PARTITIONS" in err


# --- settings and teams ---


async def test_a_setting_that_is_none_is_a_warning(declared: Settings) -> None:
    checks = await checked(declared, code=FINE, TEAMTURN_MAX_CONCURENT_TURNS="5")
    assert wrong(checks) == {"settings": "warning"}
    assert "TEAMTURN_MAX_CONCURENT_TURNS" in checks["settings"]["says"]


async def test_no_teams_are_a_warning(declared: Settings) -> None:
    assert wrong(await checked(declared, code=FINE, TEAMTURN_TEAMS="")) == {"teams": "warning"}


async def test_teams_are_named(declared: Settings) -> None:
    assert "agent.clerk" in (await checked(declared, code=FINE))["teams"]["says"]


async def test_teams_that_can_t_be_imported_are_a_failure_whatever_they_print(
    declared: Settings, tmp_path: Path
) -> None:
    (tmp_path / "noisy_teams.py").write_text(f"print('noise')\nraise RuntimeError('{SECRET}\\nsecond line')\n")
    path = os.pathsep.join([environment_of(declared)["PYTHONPATH"], str(tmp_path)])
    checks = await checked(
        declared, code=FAILED, TEAMTURN_TEAMS="noisy_teams:all", PYTHONPATH=path, SOME_API_KEY=SECRET
    )
    assert wrong(checks) == {"teams": "failure"}
    assert "noisy_teams.py:2" in checks["teams"]["says"]


# --- Postgres ---


async def test_a_schema_without_tables_is_a_failure(sandbox: Sandbox, declared: Settings) -> None:
    async with database_of_its_own(sandbox, template=None) as empty:
        checks = await checked(declared, code=FAILED, TEAMTURN_POSTGRES_URL=empty)
    assert wrong(checks) == {"schema": "failure", "fleet": "skipped", "lock table": "skipped"}
    assert checks["schema"]["advice"] == "run teamturn migrate"


async def test_an_older_schema_is_a_failure(declared: Settings, database: asyncpg.Connection) -> None:
    await database.execute(
        "delete from teamturn_migrations where version = (select max(version) from teamturn_migrations)"
    )
    checks = await checked(declared, code=FAILED)
    assert "older than this program" in checks["schema"]["says"]


async def test_a_newer_schema_is_a_failure(declared: Settings, database: asyncpg.Connection) -> None:
    await database.execute("insert into teamturn_migrations (version, name) values (9999, 'of the future')")
    assert "9999" in (await checked(declared, code=FAILED))["schema"]["says"]


async def test_a_newer_schema_that_is_compatible_is_fine(declared: Settings, database: asyncpg.Connection) -> None:
    known = sql.MIGRATIONS[-1].version
    await database.execute(sql.RECORD_MIGRATION, 9999, "of the future", known)
    says = (await checked(declared, code=FINE))["schema"]["says"]
    assert says == f"'ai' is at version 9999, and compatible with this program, which knows {known}"


@pytest.mark.parametrize("name", ["partitions", "prefetch"])
async def test_another_number_than_the_workers_have_is_a_failure(
    declared: Settings, database: asyncpg.Connection, name: str
) -> None:
    recorded = {"partitions": declared.partitions, "prefetch": declared.prefetch} | {name: 7}
    await database.execute(
        "insert into fleet_settings (prefix, partitions, prefetch) values ($1, $2, $3)",
        *(declared.prefix, recorded["partitions"], recorded["prefetch"]),
    )
    checks = await checked(declared, code=FAILED)
    assert wrong(checks) == {"fleet": "failure"}
    assert f"TEAMTURN_{name.upper()}" in checks["fleet"]["says"]


async def test_more_turns_than_locks_are_a_warning(declared: Settings) -> None:
    checks = await checked(declared, code=FINE, TEAMTURN_MAX_CONCURRENT_TURNS="1000000")
    assert wrong(checks) == {"lock table": "warning"}
    assert "max_locks_per_transaction" in checks["lock table"]["advice"]


# --- poolers ---


LANE_PARAMETERS = (
    "search_path,idle_session_timeout,tcp_user_timeout,lock_timeout,statement_timeout,"
    "idle_in_transaction_session_timeout,jit,extra_float_digits"
)


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_pooler_is_a_failure_and_what_needs_a_direct_connection_is_skipped(
    declared: Settings, mode: str
) -> None:
    with pgbouncer(declared.postgres_url.get_secret_value(), mode=mode, ignored=LANE_PARAMETERS) as url:
        checks = await checked(declared, code=FAILED, TEAMTURN_POSTGRES_URL=url)
    assert wrong(checks) == {"connections": "failure"} | dict.fromkeys(("schema", "fleet", "lock table"), "skipped")
    assert "pooler" in checks["connections"]["says"]
    assert "direct address" in checks["connections"]["advice"]


async def test_a_pooler_that_refuses_the_limits_of_a_lane_is_named(declared: Settings) -> None:
    with pgbouncer(declared.postgres_url.get_secret_value(), mode="transaction", ignored="") as url:
        checks = await checked(declared, code=FAILED, TEAMTURN_POSTGRES_URL=url)
    assert "pooler" in checks["postgres"]["says"]
    assert "direct address" in checks["postgres"]["says"]


async def test_a_trial_leaves_no_lock_behind(declared: Settings, database: asyncpg.Connection) -> None:
    await checked(declared, code=FINE)
    assert await database.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0


# --- RabbitMQ ---


async def test_a_topology_that_is_not_there_is_a_failure(settings: Settings, broker: TestBroker) -> None:
    checks = await checked(settings, code=FAILED)
    assert wrong(checks) == {"topology": "failure", "results": "skipped", "dead letters": "skipped"}
    assert "teamturn topology apply" in checks["topology"]["advice"]
    assert broker.prefix in checks["topology"]["says"]


async def test_a_queue_that_is_missing_is_named(declared: Settings, broker: TestBroker) -> None:
    await broker.channel.queue_delete(f"{declared.prefix}.requests.1")
    checks = await checked(declared, code=FAILED)
    assert wrong(checks) == {"topology": "failure"}
    assert f"{declared.prefix}.requests.1" in checks["topology"]["says"]


async def test_more_queues_than_partitions_are_a_failure(declared: Settings) -> None:
    checks = await checked(declared, code=FAILED, TEAMTURN_PARTITIONS="1")
    assert "TEAMTURN_PARTITIONS" in checks["topology"]["says"]


async def test_replies_that_nobody_reads_are_a_warning(declared: Settings, broker: TestBroker) -> None:
    await broker.channel.default_exchange.publish(Message(b"reply"), f"{declared.prefix}.results")
    checks = await checked(declared, code=FINE)
    assert wrong(checks) == {"results": "warning"}


async def test_replies_that_somebody_reads_are_fine(declared: Settings, broker: TestBroker) -> None:
    await broker.channel.set_qos(prefetch_count=1)
    queue = await broker.channel.get_queue(f"{declared.prefix}.results", ensure=False)
    await queue.consume(_leave)
    for _ in range(3):
        await broker.channel.default_exchange.publish(Message(b"reply"), f"{declared.prefix}.results")
    checks = await checked(declared, code=FINE)
    assert wrong(checks) == {}
    assert "consumers: 1" in checks["results"]["says"]


async def _leave(_message: AbstractIncomingMessage) -> None:
    """Leave a message unacknowledged."""


async def test_dead_letters_are_a_warning_that_names_the_command(declared: Settings, broker: TestBroker) -> None:
    await broker.channel.default_exchange.publish(Message(b"{"), f"{declared.prefix}.dead")
    checks = await checked(declared, code=FINE)
    assert wrong(checks) == {"dead letters": "warning"}
    assert "teamturn dead list" in checks["dead letters"]["advice"]


# --- the acknowledgement time-out ---


@pytest.fixture
def on_the_broker_s_machine(sandbox: Sandbox) -> dict[str, str]:
    """An environment in which rabbitmqctl reaches the sandbox's node."""
    node = sandbox.rabbitmq
    if not isinstance(node, RabbitmqNode):
        pytest.skip(f"RabbitMQ is not a program of this machine ({node.way})")
    programs = node._binaries.server.parent
    if not (programs / "rabbitmqctl").exists():
        pytest.skip(f"there is no rabbitmqctl in {programs}")
    reaching = {name: node._env[name] for name in ("HOME", "ERL_EPMD_PORT", "ERL_EPMD_ADDRESS", "RABBITMQ_NODENAME")}
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return reaching | {"PATH": path, "RABBITMQ_CONF_ENV_FILE": "/dev/null"}


async def test_where_it_can_be_read_it_is_compared_with_what_workers_hold(
    declared: Settings, on_the_broker_s_machine: dict[str, str]
) -> None:
    checks = await checked(declared, code=FINE, **on_the_broker_s_machine)
    assert checks["acknowledgement"]["says"].startswith("30 min is above 16 min")


async def test_one_that_is_too_short_is_a_warning(
    declared: Settings, on_the_broker_s_machine: dict[str, str], tmp_path: Path
) -> None:
    real = shutil.which("rabbitmqctl", path=on_the_broker_s_machine["PATH"])
    program = tmp_path / "rabbitmqctl"
    program.write_text(f'#!/bin/sh\n{real} "$@" | sed s/1800000/600000/\n')
    program.chmod(0o755)
    environment = on_the_broker_s_machine | {"PATH": os.pathsep.join([str(tmp_path), on_the_broker_s_machine["PATH"]])}
    checks = await checked(declared, code=FINE, **environment)
    assert wrong(checks) == {"acknowledgement": "warning"}


async def test_where_it_can_t_be_read_it_is_said_what_it_must_be(declared: Settings, tmp_path: Path) -> None:
    checks = await checked(declared, code=FINE, PATH=str(tmp_path))
    assert checks["acknowledgement"]["verdict"] == "ok"
    assert "rabbitmqctl is not on this machine" in checks["acknowledgement"]["says"]
    assert "16 min" in checks["acknowledgement"]["says"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo '{<<\"rabbit@elsewhere\">>,{ok,1800000}}'", "another cluster, rabbit@elsewhere"),
        ("echo nonsense; exit 1", "reaches no node"),
    ],
)
async def test_what_rabbitmqctl_says_of_something_else_is_not_taken_for_it(
    declared: Settings, tmp_path: Path, script: str, why: str
) -> None:
    program = tmp_path / "rabbitmqctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    checks = await checked(declared, code=FINE, PATH=str(tmp_path))
    assert why in checks["acknowledgement"]["says"]
