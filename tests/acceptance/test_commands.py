"""The command line, as its users type it."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from aio_pika import ExchangeType
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import SecretStr

from tests.acceptance.stage import DATA, QUICKER, TEAMS, Stage, database_of_its_own, staged, two_at_a_time
from tests.support import commands
from tests.support.broker import TestBroker
from tests.support.commands import COMPLETED, FAILED, MISTAKE, ODD, Ended, too_wide
from tests.support.fleet import echo
from tests.support.workers import environment_of, worker_of
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMANDS = [
    *("", "worker", "migrate", "topology", "topology apply", "topology verify", "topology repartition", "ask", "chat"),
    *("sessions", "sessions list", "sessions show", "sessions who", "sessions rename", "sessions delete"),
    *("sessions export", "doctor", "asyncapi"),
    *("dead", "dead list", "dead show", "dead replay", "dead drop"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One worker, and the sessions of all tests of this module."""
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates")) as stage:
        yield stage


@pytest.fixture
def session() -> str:
    """A session id of the test's own."""
    return f"session-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture(loop_scope="module")
async def lane(stage: Stage) -> AsyncIterator[Settings]:
    """A prefix without a topology on the module's database."""
    settings = stage.settings.model_copy(update={"prefix": f"t-{uuid.uuid4().hex[:8]}"})
    yield settings
    async with TestBroker(settings.amqp_url.get_secret_value(), settings.prefix) as broker:
        await broker.delete_everything(settings.partitions)


@pytest_asyncio.fixture(loop_scope="module")
async def declared(stage: Stage, lane: Settings) -> Settings:
    """A prefix with its topology and without a worker, on the module's database."""
    await apply(stage.broker.connection, Topology(prefix=lane.prefix, partitions=lane.partitions))
    return lane


async def teamturn(settings: Settings, *command: str, **environment: str) -> Ended:
    return await commands.teamturn(settings, *command, **QUICKER, **environment)


async def ask(stage: Stage, state: Path, *arguments: str) -> Ended:
    """Run `teamturn ask` with what it remembers in a place of the test's own."""
    return await teamturn(stage.settings, "ask", *arguments, "--timeout", "20", XDG_STATE_HOME=str(state))


# --- help ---


@pytest.fixture(scope="module")
def helps(sandbox: Sandbox) -> dict[str, Ended]:
    """What each command prints with --help."""
    settings = Settings(amqp_url=SecretStr(sandbox.amqp_url), postgres_url=SecretStr(sandbox.postgres_url))
    return asyncio.run(
        two_at_a_time({command: partial(teamturn, settings, *command.split(), "--help") for command in COMMANDS})
    )


@pytest.mark.parametrize("command", COMMANDS)
async def test_help_says_what_a_command_does_in_80_columns(helps: dict[str, Ended], command: str) -> None:
    code, out, err = helps[command]
    assert (code, err) == (0, "")
    assert too_wide(out) == []
    usage, _, text = out.partition("\n\n")
    assert "Usage:" in usage
    says = text.split("Options:")[0].split("Arguments:")[0].strip()
    assert len(says.split()) >= 3, out


async def test_help_names_every_command_with_a_line_that_is_not_cut_off(helps: dict[str, Ended]) -> None:
    _, out, _ = helps[""]
    listed = out.partition("Commands:")[2]
    for command in ("worker", "migrate", "ask", "chat", "topology", "sessions", "dead", "doctor"):
        assert f"  {command} " in listed
    assert "..." not in listed


# --- migrate ---


async def test_migrate_says_what_it_applied_and_the_second_time_that_nothing_is_left(
    sandbox: Sandbox, stage: Stage
) -> None:
    async with database_of_its_own(sandbox, template=None) as empty:
        first = await teamturn(stage.settings, "migrate", TEAMTURN_POSTGRES_URL=empty)
        second = await teamturn(stage.settings, "migrate", TEAMTURN_POSTGRES_URL=empty)
    assert (first[0], second[0]) == (0, 0)
    assert "applied" in first[1]
    assert "applied" not in second[1]
    assert "up to date" in second[1]


async def test_two_migrations_at_once_both_succeed_and_one_applies(sandbox: Sandbox, stage: Stage) -> None:
    async with database_of_its_own(sandbox, template=None) as empty:
        ended = await asyncio.gather(
            *(teamturn(stage.settings, "migrate", TEAMTURN_POSTGRES_URL=empty) for _ in range(2))
        )
    assert [code for code, _, _ in ended] == [0, 0]
    assert sum("applied" in out for _, out, _ in ended) == 1


async def test_a_worker_that_is_told_to_migrate_starts_on_an_empty_database(sandbox: Sandbox, lane: Settings) -> None:
    async with database_of_its_own(sandbox, template=None) as empty:
        settings = lane.model_copy(update={"postgres_url": SecretStr(empty), "db_schema": "Other"})
        await teamturn(settings, "topology", "apply")
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "worker", "--migrate"),
            env=environment_of(settings, **QUICKER, TEAMTURN_TEAMS=TEAMS),
            cwd=DATA,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with TestBroker(lane.amqp_url.get_secret_value(), lane.prefix) as broker:
                reply = await broker.reply(await broker.ask("s1"))
        finally:
            worker.terminate()
            await worker.wait()
    assert reply["status"] == "COMPLETED"


# --- topology ---


async def test_topology_apply_can_be_repeated(lane: Settings) -> None:
    first = await teamturn(lane, "topology", "apply")
    assert await teamturn(lane, "topology", "apply") == first
    assert first[0] == 0


async def test_topology_apply_declares_what_a_producer_needs(lane: Settings) -> None:
    await teamturn(lane, "topology", "apply")
    async with TestBroker(lane.amqp_url.get_secret_value(), lane.prefix) as broker:
        await broker.ask("s1")
        depths = [await broker.depth(f"requests.{number}") for number in range(lane.partitions)]
    assert sum(depths) == 1


async def test_a_request_is_in_one_queue_also_after_topology_was_applied_with_other_partitions(
    stage: Stage, lane: Settings
) -> None:
    await teamturn(lane, "topology", "apply", TEAMTURN_PARTITIONS="2")
    await teamturn(lane, "topology", "apply", TEAMTURN_PARTITIONS="3")
    async with TestBroker(stage.broker.url, lane.prefix) as broker:
        # 05: to the second of two queues, to the third of three.
        await broker.publish(b"{}", routing_key="05")
        there = [await _depth(broker, f"requests.{number}") for number in range(3)]
        await broker.channel.queue_delete(f"{lane.prefix}.requests.2")
    assert sum(there) == 1


async def _depth(broker: TestBroker, queue: str) -> int:
    try:
        return await broker.depth(queue)
    except ChannelNotFoundEntity:
        return 0


async def test_a_prefix_gets_another_number_of_partitions_by_a_command(lane: Settings) -> None:
    started = lane.model_copy(update={"partitions": 3})
    async with worker_of(started, echo):
        pass
    async with TestBroker(lane.amqp_url.get_secret_value(), lane.prefix) as broker:
        await broker.ask("s1")
    code, out, err = await teamturn(started, "topology", "repartition", "--partitions", "2")
    assert (code, err) == (COMPLETED, "")
    assert "3 → 2 partitions, prefetch 32: 2 moves" in out
    assert out.splitlines()[-1] == "start the workers with TEAMTURN_PARTITIONS=2"
    again = await teamturn(started, "topology", "repartition", "--partitions", "2")
    assert again == (
        MISTAKE,
        "",
        f"teamturn: the prefix '{lane.prefix}' has 2 partitions and a prefetch of 32 already\n",
    )


@pytest.mark.parametrize("number", ["0", "257", "many"])
async def test_a_number_that_no_prefix_can_have_is_refused(lane: Settings, number: str) -> None:
    code, _, err = await teamturn(lane, "topology", "repartition", "--partitions", number)
    assert code == MISTAKE
    assert "--partitions" in err


async def test_topology_verify_names_what_is_missing(lane: Settings) -> None:
    code, out, _ = await teamturn(lane, "topology", "verify")
    assert code == FAILED
    for name in ("requests", "requests.0", "requests.1", "unrouted", "results", "events", "control", "dead"):
        assert f"'{lane.prefix}.{name}'" in out


async def test_topology_verify_makes_nothing(stage: Stage, lane: Settings) -> None:
    await teamturn(lane, "topology", "verify")
    for name in ("requests.0", "results", "dead"):
        channel = await stage.broker.connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.declare_queue(f"{lane.prefix}.{name}", passive=True)
    for name in ("requests", "results"):
        channel = await stage.broker.connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.get_exchange(f"{lane.prefix}.{name}")


async def test_topology_verify_is_content_with_what_apply_declared(declared: Settings) -> None:
    code, _, err = await teamturn(declared, "topology", "verify")
    assert (code, err) == (0, "")


async def test_topology_verify_names_a_queue_that_clashes_and_only_that(stage: Stage, declared: Settings) -> None:
    name = f"{declared.prefix}.requests.1"
    await stage.broker.channel.queue_delete(name)
    await stage.broker.channel.declare_queue(name, durable=True)
    code, out, _ = await teamturn(declared, "topology", "verify")
    assert code == FAILED
    assert [name in line and "x-" in line for line in out.splitlines()] == [True]


async def test_topology_verify_names_an_exchange_that_clashes_and_only_that(stage: Stage, declared: Settings) -> None:
    name = f"{declared.prefix}.events"
    await stage.broker.channel.exchange_delete(name)
    await stage.broker.channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)
    code, out, _ = await teamturn(declared, "topology", "verify")
    assert code == FAILED
    assert [name in line and "type" in line for line in out.splitlines()] == [True]


# --- ask ---


async def test_ask_prints_the_answer_alone_on_standard_output(stage: Stage, tmp_path: Path) -> None:
    code, out, _ = await ask(stage, tmp_path, "hello [bold]you[/bold]", "--team", "echo")
    assert (code, out) == (COMPLETED, "hello [bold]you[/bold]\n")


async def test_ask_prints_the_session_that_it_made(stage: Stage, tmp_path: Path) -> None:
    before = await _sessions(stage)
    _, out, err = await ask(stage, tmp_path, "hello", "--team", "echo")
    (made,) = await _sessions(stage) - before
    assert made in out + err


async def _sessions(stage: Stage) -> set[str]:
    return {record["session_id"] for record in await stage.database.fetch("select session_id from ai.sessions")}


async def test_ask_goes_to_the_session_and_user_that_it_is_given(stage: Stage, tmp_path: Path) -> None:
    session = f"{ODD} asked"
    code, out, err = await ask(stage, tmp_path, "hi", "--team", "echo", "--session", session, "--user", ODD)
    assert (code, out) == (COMPLETED, "hi\n")
    assert session in err
    assert await stage.database.fetchval("select user_id from ai.sessions where session_id = $1", session) == ODD


async def test_ask_prints_structured_content_as_json(stage: Stage, tmp_path: Path) -> None:
    code, out, _ = await ask(stage, tmp_path, "hi", "--workflow", "pipeline")
    assert (code, json.loads(out)) == (COMPLETED, {"input": "hi"})


async def test_ask_continue_goes_on_with_the_last_session(stage: Stage, tmp_path: Path, session: str) -> None:
    await ask(stage, tmp_path, "first", "--team", "echo", "--session", session, "--user", "u1")
    code, out, err = await ask(stage, tmp_path, "second", "--continue")
    assert (code, out) == (COMPLETED, "second\n")
    assert session in err
    assert [run["input"]["input_content"] for run in await stage.runs(session)] == ["first", "second"]


async def test_ask_continue_without_a_session_to_continue_is_one_line(stage: Stage, tmp_path: Path) -> None:
    code, out, err = await ask(stage, tmp_path, "hello", "--continue")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)


async def test_ask_continue_goes_on_with_a_session_whose_answer_was_not_awaited(
    stage: Stage, declared: Settings, tmp_path: Path, session: str
) -> None:
    first = ("ask", "first", "--team", "echo", "--session", session, "--timeout", "0.2")
    await teamturn(declared, *first, XDG_STATE_HOME=str(tmp_path))
    code, _, err = await ask(stage, tmp_path, "second", "--continue")
    assert code == COMPLETED
    assert session in err


async def test_ask_json_prints_the_reply(stage: Stage, tmp_path: Path, session: str) -> None:
    code, out, _ = await ask(stage, tmp_path, "hi", "--team", "echo", "--session", session, "--json")
    reply = json.loads(out)
    (run,) = await stage.runs(session)
    assert code == COMPLETED
    assert (reply["run_id"], reply["session_id"], reply["status"], reply["content"], reply["turn"]) == (
        *(run["run_id"], session, "COMPLETED", "hi", 1),
    )


async def test_ask_ends_with_1_and_the_code_if_the_run_failed(stage: Stage, tmp_path: Path) -> None:
    code, _, err = await ask(stage, tmp_path, "hello", "--team", "broken")
    assert code == FAILED
    assert "executor_failed" in err


async def test_ask_ends_with_1_and_the_code_if_the_request_was_refused(stage: Stage, tmp_path: Path) -> None:
    code, _, err = await ask(stage, tmp_path, "hello", "--team", "nobody")
    assert code == FAILED
    assert "unknown_target" in err


async def test_ask_without_a_target_says_how_to_name_one(stage: Stage, tmp_path: Path) -> None:
    code, out, err = await ask(stage, tmp_path, "hello")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "--team" in err


@pytest.mark.parametrize("session", ["x" * 256, "a\tb"], ids=["256 bytes", "control character"])
async def test_ask_with_an_id_that_is_none_names_the_option(stage: Stage, tmp_path: Path, session: str) -> None:
    code, out, err = await ask(stage, tmp_path, "hello", "--team", "echo", "--session", session)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "session" in err


async def test_ask_says_that_no_worker_answered(declared: Settings, tmp_path: Path) -> None:
    asked = ("ask", "hello", "--team", "echo", "--timeout", "0.2")
    code, out, err = await teamturn(declared, *asked, XDG_STATE_HOME=str(tmp_path))
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "worker" in err


async def test_ask_stream_prints_the_answer_and_its_session(stage: Stage, tmp_path: Path) -> None:
    code, out, err = await ask(stage, tmp_path, "hello", "--team", "echo", "--stream")
    assert (code, out) == (COMPLETED, "hello\n")
    assert "COMPLETED · turn 1" in err


async def test_ask_stream_json_prints_an_event_a_line(stage: Stage, tmp_path: Path) -> None:
    code, out, _ = await ask(stage, tmp_path, "hello", "--team", "echo", "--stream", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == COMPLETED
    assert [(event["type"], event["number"]) for event in events] == [("run_started", 1), ("run_finished", 2)]
    assert events[-1]["reply"]["content"] == "hello"


async def test_ask_before_there_is_a_topology_says_what_to_do(lane: Settings, tmp_path: Path) -> None:
    code, out, err = await teamturn(lane, "ask", "hello", "--team", "echo", XDG_STATE_HOME=str(tmp_path))
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "teamturn topology apply" in err
