"""`teamturn sessions`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, TextIO

import asyncpg
import typer
from rich.console import Console

from schemas.fleet import SessionHolder
from schemas.ids import SessionType
from worker.cli import retention
from worker.cli.database import on_database
from worker.cli.terminal import age, json_line, printable
from worker.cli.times import moment_of
from worker.cli.transcripts import print_session, session_table
from worker.errors import StartupError
from worker.fleet.view import session_holders
from worker.sessions.editing import rename_session
from worker.sessions.reader import SessionFilter, SortedBy, is_turn, list_sessions, show_session

app = typer.Typer(help="The stored sessions.", no_args_is_help=True)

_LAST_TURNS: Final = 20

_Id = Annotated[str, typer.Argument(help="The session's id.", metavar="ID")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, a session a line.")]
_User = Annotated[str | None, typer.Option("--user", help="Those of this user.", metavar="ID")]
_Team = Annotated[str | None, typer.Option("--team", help="Those of this team.", metavar="ID")]
_Agent = Annotated[str | None, typer.Option("--agent", help="Those of this agent.", metavar="ID")]
_Workflow = Annotated[str | None, typer.Option("--workflow", help="Those of this workflow.", metavar="ID")]
_Type = Annotated[SessionType | None, typer.Option("--type", help="Those of this type.")]
_Since = Annotated[str | None, typer.Option("--since", help="Those active since: 30min, 2h, 3d, or a time.")]
_Text = Annotated[str | None, typer.Option("--name", help="Those with this in their name or id.", metavar="TEXT")]


@app.command("list")
def list_command(
    *,
    user: _User = None,
    team: _Team = None,
    agent: _Agent = None,
    workflow: _Workflow = None,
    session_type: _Type = None,
    since: _Since = None,
    name: _Text = None,
    sort: Annotated[SortedBy, typer.Option(help="In which order; the latest first, or by name.")] = SortedBy.ACTIVE,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many to a page.")] = 20,
    page: Annotated[int, typer.Option(min=1, max=1_000_000, help="Which page, from 1.")] = 1,
    as_json: _AsJson = False,
) -> None:
    """List sessions, the latest activity first.

    \b
      $ teamturn sessions list --team capital --since 1d
      $ teamturn sessions list --user ada --sort created --page 2
      $ teamturn sessions list --name groceries --json | jq -r .session_id
    """  # noqa: D301 - \b has typer keep the lines below it
    chosen = _filter(user, team, agent, workflow, session_type, since, name)
    after = (page - 1) * limit
    # One more than is shown says whether there is another page.
    found = on_database(
        lambda connection: list_sessions(connection, chosen, sorted_by=sort, limit=limit + 1, after=after)
    )
    shown = found[:limit]
    if as_json:
        for session in shown:
            typer.echo(json_line(session))
        return
    if shown:
        Console().print(session_table(shown))
    else:
        typer.echo("no sessions yet" if chosen == SessionFilter() and page == 1 else "no such sessions")
    if len(found) > limit and sys.stdout.isatty():
        typer.echo(f"more: --page {page + 1}", err=True)


@app.command("show")
def show_command(
    session_id: _Id,
    *,
    last: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many of its last turns.")] = _LAST_TURNS,
    everything: Annotated[bool, typer.Option("--all", help="All of its turns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: its fifteen fields, with all turns.")] = False,
) -> None:
    """Show one session: whose it is, its summary and state, and what was said, members indented.

    \b
      $ teamturn sessions show 7c9e6679-7425-40de-944b-e07fc1f90ae7 --last 3
      $ teamturn sessions show chat-1 --json | jq .session_data.session_state
    """  # noqa: D301 - as above
    whole = everything or as_json
    session = on_database(lambda connection: show_session(connection, session_id, last=None if whole else last + 1))
    if session is None:
        raise StartupError(f"there is no session {session_id!r}")
    if as_json:
        typer.echo(json_line(session))
        return
    turns = [number for number, run in enumerate(session.runs) if is_turn(run)]
    earlier = not whole and len(turns) > last
    if earlier:
        session = session.model_copy(update={"runs": session.runs[turns[0] + 1 :]})
    print_session(session, Console(highlight=False, markup=False), earlier=earlier)


@app.command("who")
def who_command(
    session_id: Annotated[
        str | None, typer.Argument(help="The session's id; all sessions without one.", metavar="[ID]")
    ] = None,
    *,
    as_json: _AsJson = False,
) -> None:
    """Show which worker executes a session's turn, since when, and at which step.

    Without a session: all whose turn has lasted a moment. Exit code 1 if nobody holds the session.
    """
    holders = on_database(lambda connection: session_holders(connection, session_id))
    for holder in holders:
        if as_json:
            typer.echo(json_line(holder))
        else:
            _print_holder(holder)
    if not holders:
        typer.echo("no turn is being executed" if session_id is None else "nobody holds it", err=True)
        raise typer.Exit(0 if session_id is None else 1)


@app.command("rename")
def rename_command(
    session_id: _Id,
    name: Annotated[str, typer.Argument(help="Its name: 1 to 255 characters.", metavar="NAME")],
) -> None:
    """Name a session, also while a turn of it runs.

    \b
      $ teamturn sessions rename chat-1 "Holiday in Rome"
    """  # noqa: D301 - as above
    try:
        found = on_database(lambda connection: rename_session(connection, session_id, name))
    except ValueError as error:
        raise StartupError(str(error)) from None
    if not found:
        raise StartupError(f"there is no session {session_id!r}")


@app.command("export")
def export_command(
    session_ids: Annotated[
        list[str] | None,
        typer.Argument(help="The sessions' ids; without one, all that the options choose.", metavar="[ID]"),
    ] = None,
    *,
    user: _User = None,
    team: _Team = None,
    agent: _Agent = None,
    workflow: _Workflow = None,
    session_type: _Type = None,
    since: _Since = None,
    name: _Text = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; else standard output.")] = None,
) -> None:
    """Export sessions as JSON lines: the fifteen fields of each, with all its runs.

    \b
      $ teamturn sessions export --user ada -o ada.jsonl
      $ teamturn sessions export chat-1 | jq '.runs | length'
    """  # noqa: D301 - as above
    chosen = _filter(user, team, agent, workflow, session_type, since, name)
    if session_ids and chosen != SessionFilter():
        raise StartupError("give ids, or options that choose sessions, and not both")

    async def export(connection: asyncpg.Connection, file: TextIO) -> int:
        ids = session_ids or [one.session_id for one in await list_sessions(connection, chosen)]
        number = 0
        for session_id in ids:
            session = await show_session(connection, session_id)
            if session is None and session_ids:
                raise StartupError(f"there is no session {session_id!r}")
            if session is not None:  # else it was deleted meanwhile
                file.write(json_line(session) + "\n")
                number += 1
        return number

    if output is None:
        on_database(lambda connection: export(connection, sys.stdout))
        return
    # A file that is there stays as it is until all is written.
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            number = on_database(lambda connection: export(connection, file))
        unfinished.replace(output)
    except OSError as error:
        raise StartupError(f"{output} can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    typer.echo(f"{number} {'session' if number == 1 else 'sessions'} in {output}", err=True)


app.command("delete")(retention.delete_command)
app.command("prune")(retention.prune_command)


def _filter(  # noqa: PLR0917 - the options, as they are given
    user: str | None,
    team: str | None,
    agent: str | None,
    workflow: str | None,
    session_type: SessionType | None,
    since: str | None,
    text: str | None,
) -> SessionFilter:
    named = {
        kind: target
        for kind, target in zip(
            (SessionType.TEAM, SessionType.AGENT, SessionType.WORKFLOW), (team, agent, workflow), strict=True
        )
        if target is not None
    }
    if len(named) > 1 or (session_type is not None and named and session_type not in named):
        raise StartupError("a session has one target: give one of --team, --agent and --workflow, and no other --type")
    kind, target = next(iter(named.items()), (session_type, None))
    moment = None if since is None else max(int(moment_of(since).timestamp()), 0)
    return SessionFilter(user, kind, target, moment, text)


def _print_holder(holder: SessionHolder) -> None:
    since = "just now" if holder.since is None else age(int(holder.since.timestamp()))
    run = "" if holder.run_id is None else f" · run {holder.run_id} · attempt {holder.attempt}"
    step = "" if holder.step is None else f" · step {holder.step}"
    typer.echo(f"{printable(holder.session_id)} · {holder.worker} · {since}{printable(run + step)}")
