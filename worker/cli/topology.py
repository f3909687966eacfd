"""`teamturn topology`."""

from __future__ import annotations

import asyncio

import typer

from worker.broker import connected
from worker.intake.topology import Topology, apply, check_partitions, verify
from worker.sessions.database import application_name
from worker.settings import Settings

app = typer.Typer(help="The exchanges, queues and bindings in RabbitMQ.", no_args_is_help=True)


@app.command("apply")
def apply_topology() -> None:
    """Declare all exchanges, queues and bindings.

    Those of TEAMTURN_PREFIX; what is there stays as it is. Producers can publish before a worker runs.
    """
    settings, topology = _read()

    async def run() -> None:
        async with connected(settings.amqp_url, name=application_name("topology")) as connection:
            await check_partitions(connection.amqp, topology)
            await apply(connection.amqp, topology)

    asyncio.run(run())
    typer.echo(
        f"declared {len(topology.exchanges())} exchanges and {len(topology.queues())} queues of {topology.prefix!r}"
    )


@app.command("verify")
def verify_topology() -> None:
    """Look whether all are as they should be.

    None is made. Exit code 1, and a line for each, if some are missing or different.
    """
    settings, topology = _read()

    async def run() -> list[str]:
        async with connected(settings.amqp_url, name=application_name("topology")) as connection:
            return await verify(connection.amqp, topology)

    problems = asyncio.run(run())
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(
        f"{len(topology.exchanges())} exchanges and {len(topology.queues())} queues of {topology.prefix!r} are as "
        "they should be"
    )


def _read() -> tuple[Settings, Topology]:
    settings = Settings.read()
    return settings, Topology(prefix=settings.prefix, partitions=settings.partitions)
