"""Producers in other languages, written from the contract alone: publish a request, read the reply."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from yarl import URL

from tests.acceptance.stage import DATA, Stage, staged
from tests.support.broker import slot
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


async def npm_install(folder: Path, package: str) -> None:
    """Install a package of Node's in a folder; skip the test where that can't be done."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    (folder / "package.json").write_text('{"private": true}')
    code, _, err = await run("npm", "install", "--no-audit", "--no-fund", package, cwd=folder)
    if code != 0:
        pytest.skip(f"npm can't install {package} here: {err.strip()[-200:]}")


async def test_a_producer_in_node_gets_its_reply(stage: Stage, tmp_path: Path) -> None:
    await npm_install(tmp_path, "amqplib@^0.10")
    shutil.copy(DATA / "producer.js", tmp_path)
    code, out, err = await run(
        *("node", "producer.js"),
        cwd=tmp_path,
        AMQP_URL=stage.broker.url,
        PREFIX=stage.settings.prefix,
        SESSION_ID=f"{SESSION} in node",
        TEAM_ID="echo",
        INPUT="bonjour ✓",
    )
    assert code == 0, err
    got = json.loads(out)
    reply = got["reply"]
    assert (got["slot"], got["correlationId"], got["type"]) == (
        *(slot(f"{SESSION} in node"), "asked-from-node", "run.reply"),
    )
    assert (reply["run_id"], reply["session_id"], reply["status"], reply["content"], reply["turn"]) == (
        *(got["request"]["run_id"], f"{SESSION} in node", "COMPLETED", "bonjour ✓", 1),
    )


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
async def test_a_producer_in_the_shell_gets_its_reply(stage: Stage, tmp_path: Path) -> None:
    session = f"{SESSION} in the shell"
    request = {"run_id": str(uuid.uuid4()), "session_id": session, "team_id": "echo", "input": "bonjour ✓"}
    await amqp_publish(stage, tmp_path, session, json.dumps(request))
    code, out, err = await run(
        *("amqp-consume", "--url", address(stage), "--queue", f"{stage.settings.prefix}.results", "--count", "1"),
        "cat",
        cwd=tmp_path,
    )
    assert code == 0, err
    reply = json.loads(out)
    assert (reply["run_id"], reply["session_id"], reply["status"], reply["content"]) == (
        *(request["run_id"], session, "COMPLETED", "bonjour ✓"),
    )


@pytest.mark.usefixtures("amqp_tools")
async def test_a_request_that_neither_its_body_nor_its_properties_name_is_a_dead_letter(
    stage: Stage, tmp_path: Path
) -> None:
    """By a tool that sets no message_id; aio-pika would invent one."""
    await amqp_publish(stage, tmp_path, SESSION, json.dumps({"session_id": SESSION, "team_id": "echo", "input": "hi"}))
    dead = await stage.broker.dead_letter()
    assert "missing_run_id" in {str(value) for value in dead.headers.values()}
