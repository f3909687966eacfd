"""`teamturn fleet`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.fleet import FleetState
from worker.broker import connected
from worker.cli.terminal import age
from worker.fleet.view import fleet_state
from worker.intake.topology import Topology
from worker.sessions.database import application_name, connect
from worker.sessions.migrations import require_current
from worker.settings import Settings


def fleet(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False,
) -> None:
    """Show the workers, their partitions, and what waits.

    Those of TEAMTURN_PREFIX.

    A partition's backlog is what waits in its queue; a worker holds up to TEAMTURN_PREFETCH more of each.
    """
    state = asyncio.run(_state(Settings.read()))
    if as_json:
        typer.echo(state.model_dump_json())
    else:
        _print(state, Console(highlight=False))


async def _state(settings: Settings) -> FleetState:
    topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
    database = await connect(settings.postgres_url, settings.db_schema, application=application_name("fleet"))
    try:
        await require_current(database, settings.db_schema)
        async with connected(settings.amqp_url, name=application_name("fleet")) as broker:
            return await fleet_state(database, broker.amqp, topology)
    finally:
        await database.close()


def _print(state: FleetState, console: Console) -> None:
    workers = Table(box=None, pad_edge=False)
    for name in ("worker", "since", "running", "oldest turn", "partitions"):
        workers.add_column(name, overflow="fold")
    for one in state.workers:
        owned = ", ".join(map(str, one.partitions)) or "none: it stands by"
        workers.add_row(Text(one.worker), _ago(one.since), str(one.running), _ago(one.oldest_start), owned)
    console.print(workers if state.workers else f"no worker of prefix {state.prefix!r} is running")
    partitions = Table(box=None, pad_edge=False)
    for name in ("partition", "owner", "consumers", "backlog"):
        partitions.add_column(name, overflow="fold")
    for part in state.partitions:
        partitions.add_row(str(part.partition), Text(part.owner or "-"), _count(part.consumers), _count(part.backlog))
    console.print()
    console.print(partitions)
    console.print()
    waiting = [("unrouted", state.unrouted), ("results", state.results), ("dead letters", state.dead)]
    console.print(" · ".join(f"{name} {_count(count)}" for name, count in waiting))
    console.print(f"oldest unfinished turn: {_ago(state.oldest_unfinished)}")


def _ago(moment: datetime | None) -> str:
    return "-" if moment is None else age(int(moment.astimezone(UTC).timestamp()))


def _count(number: int | None) -> str:
    return "missing" if number is None else str(number)
