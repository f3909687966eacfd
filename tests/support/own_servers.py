"""Servers of a test's own, to be stopped, crashed and started again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import asyncpg
import pytest
from typing_extensions import override

from worker.sandbox import ways
from worker.sandbox.errors import SandboxError
from worker.sandbox.postgres import PostgresNode
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


def rabbitmq_conf_of_tls(port: int, authority: Path, certificate: Path, key: Path) -> str:
    """Lines for `own_rabbitmq`: a TLS listener, to which a client shows a certificate of the authority's."""
    return (
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {authority}\n"
        f"ssl_options.certfile = {certificate}\n"
        f"ssl_options.keyfile = {key}\n"
        "ssl_options.verify = verify_peer\n"
        "ssl_options.fail_if_no_peer_cert = true\n"
    )


async def turn_tls_on(server: Server, authority: bytes, certificate: bytes, key: bytes) -> None:
    """Have a Postgres of ours speak TLS with this certificate, from the next connection on."""
    assert isinstance(server, PostgresNode)
    given = server._home.stat()
    for name, content in (("ca.pem", authority), ("server.pem", certificate), ("server.key", key)):
        file = server._home / name
        file.write_bytes(content)
        file.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(file, given.st_uid, given.st_gid)
    admin = await asyncpg.connect(server.url, ssl="disable")
    for setting in (
        "ssl_ca_file = 'ca.pem'",
        "ssl_cert_file = 'server.pem'",
        "ssl_key_file = 'server.key'",
        "ssl = on",
    ):
        await admin.execute(f"alter system set {setting}")
    await admin.execute("select pg_reload_conf()")
    await admin.close()


async def ask_for_certificates(server: Server, role: str) -> None:
    """Have a Postgres of ours take a role by its certificate alone."""
    assert isinstance(server, PostgresNode)
    rules = server._home / "pg_hba.conf"
    rules.write_text(f"hostssl all {role} all cert\n" + rules.read_text())
    admin = await asyncpg.connect(server.url, ssl="disable")
    await admin.execute("select pg_reload_conf()")
    await admin.close()
