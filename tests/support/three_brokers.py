"""A RabbitMQ of three nodes on one machine, and a line to them that leads to whichever is up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typing_extensions import override
from yarl import URL

from tests.support.own_servers import rabbitmqctl
from tests.support.proxy import Proxy
from worker.sandbox.binaries import RabbitmqBinaries, find_rabbitmq
from worker.sandbox.errors import WayClosedError
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sandbox.server import takes_connections
from worker.sandbox.site import OwnedProcess, Site, free_port

_NAMES = ("one", "two", "three")


class _Member(RabbitmqNode):
    """A node that joins the others, by their names in its configuration; they share epmd, cookie and user."""

    def __init__(
        self, site: Site, binaries: RabbitmqBinaries, name: str, secret: str, epmd: tuple[int, OwnedProcess]
    ) -> None:
        self.name_of_node = f"{name}-{site.name}@localhost"
        self._place = site.directory / name
        self._secret = secret
        self._shared_epmd = epmd
        super().__init__(site, binaries, "a node of three")

    @override
    def _prepare(self, distribution_port: int, epmd_port: int) -> dict[str, str]:
        self._home = self._place
        self._cookie = self._password = self._secret
        env = super()._prepare(distribution_port, self._shared_epmd[0])
        with Path(env["RABBITMQ_CONFIG_FILE"]).open("a") as file:
            file.write("cluster_formation.peer_discovery_backend = classic_config\n")
            file.write("cluster_formation.discovery_retry_limit = 1\n")
            file.writelines(
                f"cluster_formation.classic_config.nodes.{number} = {name}-{self._site.name}@localhost\n"
                for number, name in enumerate(_NAMES, 1)
            )
        return env | {"RABBITMQ_NODENAME": self.name_of_node}

    @override
    def _start_epmd(self, port: int) -> OwnedProcess:
        return self._shared_epmd[1]


class _ToWhoIsUp(Proxy):
    """A load balancer in front of them: a new connection goes to the first node that answers."""

    def __init__(self, nodes: list[_Member]) -> None:
        super().__init__(nodes[0].url)
        self._nodes = nodes

    @override
    async def _connected(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        for node in self._nodes:
            self._target = URL(node.url)
            if takes_connections("127.0.0.1", node._port):
                break
        await super()._connected(client_reader, client_writer)


@dataclass(frozen=True)
class ThreeBrokers:
    """The nodes, and the URL by which clients come to one that is up."""

    nodes: list[_Member]
    url: str


@asynccontextmanager
async def three_brokers() -> AsyncIterator[ThreeBrokers]:
    """A cluster for the block; skipped where no RabbitMQ's programs are."""
    site = Site(report=print)
    try:
        nodes = await asyncio.to_thread(_started, site)
        await rabbitmqctl(nodes[0], "await_online_nodes", str(len(nodes)))
        async with _ToWhoIsUp(nodes) as line:
            yield ThreeBrokers(nodes, line.url)
        for node in nodes:
            node.kill()  # in good order they would wait for the dead one
    finally:
        await asyncio.to_thread(site.close)


def _started(site: Site) -> list[_Member]:
    try:
        binaries = find_rabbitmq()
    except WayClosedError as error:
        pytest.skip(str(error))
    port = free_port()
    epmd = site.start("epmd", [str(binaries.epmd), "-port", str(port), "-address", "127.0.0.1"], env={"HOME": "/"})
    epmd.wait_until(lambda: takes_connections("127.0.0.1", port), 20)
    secret = secrets.token_hex(16)
    return [_Member(site, binaries, name, secret, (port, epmd)) for name in _NAMES]
