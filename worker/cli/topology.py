"""`teamturn topology`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Annotated

import typer

from worker.broker import CLOSE_LIMIT_SECONDS, connected
from worker.intake.topology import Topology, apply, check_partitions, may_declare, verify
from worker.operations.repartition import Repartition, live_workers, locked, planned
from worker.sessions.database import application_name, connect
from worker.sessions.migrations import require_current
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

    async def run() -> tuple[list[str], bool]:
        async with connected(settings.amqp_url, name=application_name("topology")) as connection:
            problems = await verify(connection.amqp, topology)
            return problems, not problems and await may_declare(connection.amqp, topology)

    problems, compared = asyncio.run(run())
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    seen = "as they should be" if compared else "there; as a user who may not declare, no more can be seen of them"
    typer.echo(
        f"{len(topology.exchanges())} exchanges and {len(topology.queues())} queues of {topology.prefix!r} are {seen}"
    )


@app.command("repartition")
def repartition(
    *,
    partitions: Annotated[int, typer.Option(min=1, max=256, help="How many there are to be.")],
    prefetch: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Deliveries held per queue; as it is by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be moved.")] = False,
) -> None:
    """Change the number of partitions, with nothing lost and nothing reordered.

    Of TEAMTURN_PREFIX. Stop its workers first; producers go on. Every request that waits is moved, in its session's
    order, and what is published meanwhile is held. At the end publishes are refused (basic.nack) for a moment, which is
    measured: producers publish again what is not confirmed, as RunClient does. Then start the workers with the new
    TEAMTURN_PARTITIONS and TEAMTURN_PREFETCH.

    Interrupted at any point, run it again with the same numbers: it goes on where it was, and until then no worker
    starts.

    \b
      $ teamturn topology repartition --partitions 32
      gathering the requests of 16 queues; what is published meanwhile is held
        9,472 messages moved
      spreading them over 32 queues
      16 → 32 partitions, prefetch 128: 24,118 moves, 4,731/s; publishes were
      refused for 0.031 s
      start the workers with TEAMTURN_PARTITIONS=32
    """  # noqa: D301 - \b has typer keep the lines below it
    settings = Settings.read()
    asyncio.run(_repartition(settings, partitions, prefetch, dry_run=dry_run))


async def _repartition(settings: Settings, partitions: int, prefetch: int | None, *, dry_run: bool) -> None:
    name = application_name("repartition")
    async with AsyncExitStack() as stack:
        database = await connect(settings.postgres_url, settings.db_schema, application=name, writes=True)
        stack.push_async_callback(database.close, timeout=CLOSE_LIMIT_SECONDS)
        await require_current(database, settings.db_schema)
        await stack.enter_async_context(locked(database, settings.prefix))
        agreement, change = await planned(database, settings.prefix, partitions=partitions, prefetch=prefetch)
        broker = await stack.enter_async_context(connected(settings.amqp_url, name=name))
        work = Repartition(database, broker, settings.prefix, agreement, change, report=typer.echo)
        what = f"{agreement.partitions} → {change.partitions} partitions, prefetch {change.prefetch}"
        if dry_run:
            state = "" if agreement.change is None else f"; the change is under way: {change.phase.value}"
            typer.echo(f"{what}: {await work.waiting():,} messages would be moved{state}")
            if live := await live_workers(database, settings.prefix):
                typer.echo(f"these workers must be stopped first: {', '.join(live)}")
            return
        outcome = await work.run()
    typer.echo(
        f"{what}: {outcome.moved:,} moves, {outcome.per_second:,.0f}/s; publishes were refused for "
        f"{outcome.gate_seconds:.3f} s"
    )
    prefetch_too = f" TEAMTURN_PREFETCH={change.prefetch}" if change.prefetch != agreement.prefetch else ""
    typer.echo(f"start the workers with TEAMTURN_PARTITIONS={change.partitions}{prefetch_too}")


def _read() -> tuple[Settings, Topology]:
    settings = Settings.read()
    return settings, Topology(prefix=settings.prefix, partitions=settings.partitions)
