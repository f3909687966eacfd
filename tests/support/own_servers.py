"""Servers of a test's own, to be stopped, crashed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import pytest
from typing_extensions import override

from worker.sandbox import ways
from worker.sandbox.errors import SandboxError
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sandbox.server import Server
from worker.sandbox.site import Site
from worker.sandbox.ways import OWN


@asynccontextmanager
async def own_postgres() -> AsyncIterator[Server]:
    async with _own(lambda site: ways.have_postgres(site, OWN)) as server:
        yield server


@asynccontextmanager
async def own_rabbitmq(
    configuration: str = "", *, plugins: Sequence[str] = (), erlang: str = ""
) -> AsyncIterator[RabbitmqNode]:
    """A node, with lines of its own in rabbitmq.conf, plugins that RabbitMQ comes with, and arguments for Erlang."""

    class Configured(RabbitmqNode):
        @override
        def _prepare(self, distribution_port: int, epmd_port: int) -> dict[str, str]:
            env = super()._prepare(distribution_port, epmd_port)
            with Path(env["RABBITMQ_CONFIG_FILE"]).open("a") as file:
                file.write(configuration)
            Path(env["RABBITMQ_ENABLED_PLUGINS_FILE"]).write_text(f"[{','.join(plugins)}].\n")
            given = env["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
            return env | {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{given} {erlang}"}

    with mock.patch.object(ways, "RabbitmqNode", Configured):
        async with _own(lambda site: ways.have_rabbitmq(site, OWN)) as server:
            assert isinstance(server, RabbitmqNode)
            yield server


@asynccontextmanager
async def _own(have: Callable[[Site], Server]) -> AsyncIterator[Server]:
    """A server; where none can be had but somebody else's, the test is skipped."""
    site = Site(report=print)
    try:
        try:
            server = await asyncio.to_thread(have, site)
        except SandboxError as error:
            pytest.skip(str(error))
        yield server
    finally:
        await asyncio.to_thread(site.close)


async def rabbitmqctl(node: RabbitmqNode, *words: str) -> None:
    """Run RabbitMQ's own command on a node of ours."""
    program = node._binaries.server.with_name("rabbitmqctl")
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        env=node._env,
        cwd=node._home,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


@asynccontextmanager
async def memory_alarm(node: RabbitmqNode) -> AsyncIterator[None]:
    """Have the node take no messages for the block, as when it is short of memory."""
    await rabbitmqctl(node, "set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        await rabbitmqctl(node, "set_vm_memory_high_watermark", "0.4")
