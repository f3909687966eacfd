"""`teamturn sessions`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import asyncpg
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.fleet import SessionHolder
from schemas.sessions import SessionOverview, StoredSession
from worker.cli.terminal import age, printable
from worker.errors import StartupError
from worker.executors.turn import text_of
from worker.fleet.view import session_holders
from worker.sessions.database import application_name, connect
from worker.sessions.migrations import require_current
from worker.sessions.reader import list_sessions, show_session
from worker.settings import Settings

app = typer.Typer(help="The stored sessions.", no_args_is_help=True)

_T = TypeVar("_T")
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, a session a line.")]


@app.command("list")
def list_command(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    as_json: _AsJson = False,
) -> None:
    """List sessions, the latest activity first."""
    found = _read(lambda connection: list_sessions(connection, limit=limit))
    if as_json:
        for session in found:
            typer.echo(session.model_dump_json())
        return
    if not found:
        typer.echo("no sessions yet")
        return
    Console().print(_table(found))


@app.command("show")
def show_command(
    session_id: Annotated[str, typer.Argument(help="The session's id.")],
    *,
    as_json: _AsJson = False,
) -> None:
    """Show one session: whose it is, its state, and what was said."""
    session = _read(lambda connection: show_session(connection, session_id))
    if session is None:
        raise StartupError(f"there is no session {session_id!r}")
    if as_json:
        typer.echo(session.model_dump_json())
    else:
        _print_session(session)


@app.command("who")
def who_command(
    session_id: Annotated[str | None, typer.Argument(help="The session's id; all sessions without one.")] = None,
    *,
    as_json: _AsJson = False,
) -> None:
    """Show which worker executes a session's turn, since when, and at which step.

    Without a session: all whose turn has lasted a moment. Exit code 1 if nobody holds the session.
    """
    holders = _read(lambda connection: session_holders(connection, session_id))
    for holder in holders:
        if as_json:
            typer.echo(holder.model_dump_json())
        else:
            _print_holder(holder)
    if not holders:
        typer.echo("no turn is being executed" if session_id is None else "nobody holds it", err=True)
        raise typer.Exit(0 if session_id is None else 1)


def _print_holder(holder: SessionHolder) -> None:
    since = "just now" if holder.since is None else age(int(holder.since.timestamp()))
    run = "" if holder.run_id is None else f" · run {holder.run_id} · attempt {holder.attempt}"
    step = "" if holder.step is None else f" · step {holder.step}"
    typer.echo(f"{printable(holder.session_id)} · {holder.worker} · {since}{printable(run + step)}")


def _read(query: Callable[[asyncpg.Connection], Awaitable[_T]]) -> _T:
    settings = Settings.read()

    async def run() -> _T:
        connection = await connect(settings.postgres_url, settings.db_schema, application=application_name("sessions"))
        try:
            await require_current(connection, settings.db_schema)
            return await query(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def _table(sessions: list[SessionOverview]) -> Table:
    table = Table(box=None, pad_edge=False)
    # At 80 columns a UUID is whole, and the rest is cut; a longer id goes on in the next line.
    table.add_column("session", overflow="fold")
    table.add_column("target", no_wrap=True, overflow="ellipsis", max_width=15)
    table.add_column("user", no_wrap=True, overflow="ellipsis", max_width=8)
    table.add_column("runs", no_wrap=True, justify="right")
    table.add_column("active", no_wrap=True)
    for one in sessions:
        # Text, not markup: an id may hold brackets.
        target = Text(f"{one.session_type.value} {one.target_id}")
        active = age(one.updated_at or one.created_at)
        table.add_row(Text(one.session_id), target, Text(one.user_id or "-"), str(one.runs), active)
    return table


def _print_session(session: StoredSession) -> None:
    console = Console(highlight=False, markup=False)
    target = session.team_id or session.agent_id or session.workflow_id
    console.print(f"session {session.session_id}", style="bold")
    console.print(f"  {session.session_type.value} {target} · user {session.user_id or '-'}")
    console.print(f"  created {_time(session.created_at)} · updated {_time(session.updated_at or session.created_at)}")
    state = (session.session_data or {}).get("session_state")
    if state:
        console.print(f"  state {printable(text_of(state))}")
    for run in session.runs:
        indent = "    " if run.get("parent_run_id") else "  "
        given = run.get("input")
        asked = given.get("input_content") if isinstance(given, dict) else given
        console.print()
        console.print(f"{indent}run {run.get('run_id')} · {run.get('status')}", style="dim")
        console.print(f"{indent}> {printable(text_of(asked))}")
        if run.get("content") is not None:
            console.print(f"{indent}{printable(text_of(run['content']))}")


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
