"""Producers in other languages, written from the contract alone: publish a request, read the reply."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from aio_pika import ExchangeType
from yarl import URL

from tests.acceptance.stage import Stage, staged
from tests.support.broker import slot
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import ROOT
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = ROOT / "deploy" / "examples" / "node"
SESSION = "séance 会議 ✓"
"""Its slot differs in every encoding but UTF-8."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates")) as stage:
        yield stage


async def run(*words: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Run a program; return its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=cwd,
        env=dict(os.environ) | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        return -1, out.decode(), f"took too long\n{err.decode()}"
    return process.returncode or 0, out.decode(), err.decode()


# --- Node ---


async def npm(*words: str, folder: Path) -> None:
    """Run npm in a folder; skip the test where it can't do that."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    code, _, err = await run("npm", *words, "--no-audit", "--no-fund", cwd=folder)
    if code != 0:
        pytest.skip(f"npm can't {words} here: {err.strip()[-200:]}")


async def npm_install(folder: Path, package: str) -> None:
    """Install a package of Node's in an empty folder; skip the test where that can't be done."""
    (folder / "package.json").write_text('{"private": true}')
    await npm("install", package, folder=folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deploy/examples/node, as its package-lock.json installs it; where that can't be done, the test is skipped."""
    folder = tmp_path_factory.mktemp("node") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("node_modules"))
    await npm("ci", folder=folder)
    return folder


def environment(stage: Stage) -> dict[str, str]:
    return {"TEAMTURN_AMQP_URL": stage.broker.url, "TEAMTURN_PREFIX": stage.settings.prefix}


async def node_runs(stage: Stage, node: Path, *words: str) -> tuple[int, str, str]:
    return await run("node", *words, cwd=node, **environment(stage))


async def test_a_producer_in_node_gets_its_reply(stage: Stage, node: Path) -> None:
    session = f"{SESSION} in node"
    code, out, err = await node_runs(stage, node, "producer.js", "--team", "echo", "--session", session, "bonjour ✓")
    assert code == 0, err
    reply = json.loads(out)
    assert (reply["session_id"], reply["status"], reply["content"], reply["turn"]) == (
        *(session, "COMPLETED", "bonjour ✓", 1),
    )


async def test_a_producer_in_node_publishes_persistent_to_the_session_s_slot(stage: Stage, node: Path) -> None:
    queue = await stage.broker.channel.declare_queue(exclusive=True)
    await queue.bind(f"{stage.settings.prefix}.requests", slot(SESSION))
    code, out, err = await node_runs(stage, node, "producer.js", "--team", "echo", "--session", SESSION, "hello")
    assert code == 0, err
    message = await queue.get()
    assert message is not None
    assert (message.delivery_mode, message.message_id, message.content_type) == (
        *(2, json.loads(out)["run_id"], "application/json"),
    )


async def test_a_failed_run_is_an_exit_code_of_the_producer_in_node(stage: Stage, node: Path) -> None:
    code, out, _ = await node_runs(stage, node, "producer.js", "--team", "nobody", "hello")
    assert (code, json.loads(out)["error"]["code"]) == (1, "unknown_target")


async def test_a_consumer_in_node_takes_a_reply_from_the_results_and_acknowledges_it(stage: Stage, node: Path) -> None:
    asked = ("producer.js", "--team", "echo", "--to-results", "bonjour ✓")
    code, run_id, err = await node_runs(stage, node, *asked)
    assert code == 0, err
    code, out, err = await node_runs(stage, node, "consumer.js", "--count", "1")
    assert code == 0, err
    reply = json.loads(out)
    assert (reply["run_id"], reply["content"]) == (run_id.strip(), "bonjour ✓")
    assert await stage.broker.depth("results") == 0


async def test_a_watcher_in_node_is_told_what_happens_in_a_session(stage: Stage, node: Path) -> None:
    session = f"{SESSION} watched"
    watcher = await asyncio.create_subprocess_exec(
        *("node", "watcher.js", "--session", session, "--count", "1"),
        cwd=node,
        env=dict(os.environ) | environment(stage),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert watcher.stderr is not None
    try:
        async with asyncio.timeout(20):
            assert (await watcher.stderr.readline()).startswith(b"watching ")
        for other in (f"{session} not", session):
            code, _, err = await node_runs(
                stage, node, "producer.js", "--team", "echo", "--stream", "--session", other, "bonjour ✓"
            )
            assert code == 0, err
        async with asyncio.timeout(20):
            out, _ = await watcher.communicate()
    finally:
        if watcher.returncode is None:
            watcher.kill()
            await watcher.wait()
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["type"], event["session_id"]) for event in events] == [
        *(("run_started", session), ("run_finished", session)),
    ]
    assert events[-1]["reply"]["content"] == "bonjour ✓"


async def test_a_producer_in_node_says_that_no_queue_took_its_request(stage: Stage, node: Path) -> None:
    prefix = f"t-{uuid.uuid4().hex[:8]}"
    await stage.broker.channel.declare_exchange(f"{prefix}.requests", ExchangeType.DIRECT, auto_delete=True)
    code, out, err = await run(
        *("node", "producer.js", "--team", "echo", "hello"),
        cwd=node,
        TEAMTURN_AMQP_URL=stage.broker.url,
        TEAMTURN_PREFIX=prefix,
    )
    await stage.broker.channel.exchange_delete(f"{prefix}.requests")
    assert (code, out) == (1, "")
    assert err.startswith("no queue took the request")


async def test_a_consumer_in_node_goes_on_over_a_lost_connection(stage: Stage, node: Path) -> None:
    async with Proxy(stage.broker.url) as line:
        consumer = await asyncio.create_subprocess_exec(
            *("node", "consumer.js", "--count", "1"),
            cwd=node,
            env=dict(os.environ) | environment(stage) | {"TEAMTURN_AMQP_URL": line.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert consumer.stderr is not None
        try:
            async with asyncio.timeout(20):
                await eventually(partial(is_consumed, stage, "results"))
                line.cut()
                assert b"connecting again" in await consumer.stderr.readline()
                run_id = await stage.broker.ask("s1")
                out, _ = await consumer.communicate()
        finally:
            if consumer.returncode is None:
                consumer.kill()
                await consumer.wait()
    assert (consumer.returncode, json.loads(out)["run_id"]) == (0, run_id)


async def is_consumed(stage: Stage, queue: str) -> bool:
    """Whether somebody consumes a queue."""
    declared = await stage.broker.channel.declare_queue(f"{stage.settings.prefix}.{queue}", passive=True)
    return bool(declared.declaration_result.consumer_count)


def locked_packages() -> dict[str, dict[str, str]]:
    lock = json.loads((EXAMPLES / "package-lock.json").read_text())
    return {name: package for name, package in lock["packages"].items() if name}


async def test_the_lock_file_of_node_pins_contents_and_names_no_registry() -> None:
    packages = locked_packages()
    assert packages
    assert all("integrity" in package and "resolved" not in package for package in packages.values())


async def test_the_program_of_the_readme_in_node_gets_its_reply(stage: Stage, node: Path) -> None:
    session = f"chat-{uuid.uuid4()}"
    (node / "publish.mjs").write_text(shown_in_the_readme(stage, session, "js", "amqplib"))
    code, out, err = await run("node", "publish.mjs", cwd=node)
    assert code == 0, err
    assert_is_the_reply_of_the_readme(out, session)


def shown_in_the_readme(stage: Stage, session: str, language: str, word: str) -> str:
    """The README's program in a language that has this word, for a session, the stage's addresses and its team."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if word in block]
    for url in ("amqp://guest:guest@localhost:5672", "amqp://localhost"):
        program = program.replace(url, address(stage))
    return (
        program.replace("teamturn.", f"{stage.settings.prefix}.")
        .replace("chat-1", session)
        .replace("capital'", "echo'")
        .replace('"team_id":"capital"', '"team_id":"echo"')
    )


def assert_is_the_reply_of_the_readme(out: str, session: str) -> None:
    reply = json.loads(out)
    assert (reply["session_id"], reply["status"], reply["content"]) == (
        *(session, "COMPLETED", "What is the capital of France?"),
    )


# --- a shell ---


@pytest.fixture
def amqp_tools() -> None:
    if shutil.which("amqp-publish") is None or shutil.which("amqp-consume") is None:
        pytest.skip("amqp-publish and amqp-consume are not installed (Debian: apt-get install amqp-tools)")


def address(stage: Stage) -> str:
    """The broker's URL with its virtual host spelled out: to amqp-tools a / at the end names one without a name."""
    url = URL(stage.broker.url)
    return str(url.with_path("/%2F", encoded=True) if url.path in {"", "/"} else url)


async def amqp_publish(stage: Stage, folder: Path, session: str, body: str) -> None:
    code, _, err = await run(
        *("amqp-publish", "--url", address(stage), "--exchange", f"{stage.settings.prefix}.requests"),
        *("--routing-key", slot(session), "--persistent", "--content-type", "application/json", "--body", body),
        cwd=folder,
    )
    assert code == 0, err


@pytest.mark.usefixtures("amqp_tools")
async def test_the_shell_commands_of_the_readme_get_their_reply(stage: Stage, tmp_path: Path) -> None:
    session = f"chat-{uuid.uuid4()}"
    commands = shown_in_the_readme(stage, session, "sh", "amqp-publish").replace("r-1", str(uuid.uuid4()))
    code, out, err = await run("sh", "-euc", commands, cwd=tmp_path)
    assert code == 0, err
    assert_is_the_reply_of_the_readme(out, session)


@pytest.mark.usefixtures("amqp_tools")
async def test_a_request_that_neither_its_body_nor_its_properties_name_is_a_dead_letter(
    stage: Stage, tmp_path: Path
) -> None:
    """By a tool that sets no message_id; aio-pika would invent one."""
    await amqp_publish(stage, tmp_path, SESSION, json.dumps({"session_id": SESSION, "team_id": "echo", "input": "hi"}))
    dead = await stage.broker.dead_letter()
    assert "missing_run_id" in {str(value) for value in dead.headers.values()}


# --- Python ---


async def test_the_producer_in_python_gets_its_replies(stage: Stage) -> None:
    program = (ROOT / "deploy" / "examples" / "producer.py").read_text(encoding="utf-8")
    where = f'"{stage.broker.url}", prefix="{stage.settings.prefix}"'
    program = program.replace('"amqp://guest:guest@localhost:5672/"', where).replace('"capital"', '"echo"')
    code, out, err = await run(sys.executable, "-c", program, cwd=ROOT)
    assert (code, err) == (0, "")
    # What an executor answers is written by no model: the second one is not streamed.
    assert out.split("\n") == ["COMPLETED Where is Paris?", "And Oslo?", ""]
