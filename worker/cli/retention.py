"""`teamturn sessions delete` and `teamturn sessions prune`: what takes stored sessions away for good."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import asyncpg
import typer

from schemas.ids import SessionType
from schemas.sessions import Pruned, SessionOverview
from worker.cli.database import on_database
from worker.cli.terminal import json_line, one_line, printable, size
from worker.cli.times import ago, span_of
from worker.errors import StartupError
from worker.sessions.editing import Deleted, delete_session, forget_user
from worker.sessions.reader import SessionFilter, list_sessions, show_session
from worker.sessions.retention import SHORTEST_KEPT, Old, count_prunable, prune

_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

_NOT_REACHED: Final = (
    "not reached: requests and replies that wait in queues, dead letters (teamturn dead drop --user), logs, backups"
)


def delete_command(
    session_ids: Annotated[list[str] | None, typer.Argument(help="The sessions' ids.", metavar="[ID]")] = None,
    *,
    user: Annotated[str | None, typer.Option("--user", help="All of this user's.", metavar="ID")] = None,
    yes: _Yes = False,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds to wait for a turn that is being executed.")
    ] = 0,
    receipts: Annotated[bool, typer.Option("--receipts", help="Delete the receipts as well, with their ids.")] = False,
) -> None:
    """Delete sessions with all their runs, after asking.

    A session is left alone while a turn of it is being executed. Of its runs' replies nothing is kept, but of each a
    receipt is, with its ids and a hash of the request: a request that is delivered again is answered session_deleted,
    and is not executed again. With --receipts nothing is kept, and it would be. A request that waits, or comes later,
    begins a new session. teamturn sessions prune deletes old receipts.

    With --user also what was kept of the user without a session. What this does not reach is said then: requests and
    replies that wait in queues, dead letters, logs, backups.

    \b
      $ teamturn sessions delete chat-1 chat-2 --yes --wait 60
      $ teamturn sessions delete --user ada --receipts
    """  # noqa: D301 - \b has typer keep the lines below it
    if bool(session_ids) == (user is not None):
        raise StartupError("say which: the sessions' ids, or --user")
    if user is not None:
        left = _delete_all_of(user, yes=yes, wait_seconds=wait, with_receipts=receipts)
    else:
        given = session_ids or []
        left = [one for one in given if not _asked_and_deleted(one, yes=yes, wait_seconds=wait, with_receipts=receipts)]
    raise typer.Exit(1 if left else 0)


def prune_command(
    *,
    older_than: Annotated[str, typer.Option("--older-than", help="Last used so long ago: 90d; a day at least.")],
    user: Annotated[str | None, typer.Option("--user", help="Those of this user.", metavar="ID")] = None,
    team: Annotated[str | None, typer.Option("--team", help="Those of this team.", metavar="ID")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Those of this agent.", metavar="ID")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Those of this workflow.", metavar="ID")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="How many sessions at a time.")] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    yes: _Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, at the end.")] = False,
) -> None:
    """Delete sessions whose last turn was long ago, with their runs and receipts, after asking.

    Also receipts of that age without a session (it was deleted, or the request was refused) and, where nothing is
    chosen but the age, what runs have left that were begun then and never answered. Beside running workers: a session
    is left alone while a turn of it is being executed, while a run of it waits for somebody's decision, and where one
    that was begun or cancelled since has no answer yet. In batches, each of which is done or not: it can be
    interrupted, and begun again.

    A receipt is what a request gets that is delivered again. After it is gone, such a request is executed again: choose
    an age above the longest time for which a request can wait in a queue, or be sent again by its producer.

    \b
      $ teamturn sessions prune --older-than 90d --dry-run
      1204 sessions with 9730 runs, 9764 receipts: 48.1 MB would be deleted
      $ teamturn sessions prune --older-than 90d --yes --json
    """  # noqa: D301 - as above
    old = _old(older_than, user, team, agent, workflow)
    found = on_database(lambda connection: count_prunable(connection, old))
    if dry_run:
        _tell(found, as_json=as_json)
        return
    if not yes:
        _confirm(f"Delete {_counts(found)} for good?")

    async def pruned(connection: asyncpg.Connection) -> Pruned:
        gone = Pruned()
        async for gone in prune(connection, old, batch=batch):
            if sys.stderr.isatty():
                typer.echo(f"\r{gone.sessions} of {found.sessions} sessions", nl=False, err=True)
        if sys.stderr.isatty():
            typer.echo(err=True)
        return gone

    _tell(on_database(pruned), as_json=as_json)


def _old(older_than: str, user: str | None, team: str | None, agent: str | None, workflow: str | None) -> Old:
    span = span_of(older_than, option="--older-than")
    if span < SHORTEST_KEPT:
        raise StartupError(
            "--older-than is a day at least: with its receipt goes what keeps a request from being executed twice"
        )
    kinds = {SessionType.TEAM: team, SessionType.AGENT: agent, SessionType.WORKFLOW: workflow}
    targets = [(kind, target) for kind, target in kinds.items() if target is not None]
    if len(targets) > 1:
        raise StartupError("a session has one target: give one of --team, --agent and --workflow")
    kind, target = targets[0] if targets else (None, None)
    return Old(max(int(ago(span).timestamp()), 0), user, kind, target)


def _counts(pruned: Pruned) -> str:
    took = f"{pruned.sessions} sessions with {pruned.runs} runs, {pruned.receipts} receipts"
    return f"{took}, {pruned.unfinished} unfinished runs" if pruned.unfinished else took


def _tell(pruned: Pruned, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_line(pruned))
        return
    typer.echo(f"{_counts(pruned)}: {size(pruned.bytes)} {'would be deleted' if pruned.dry_run else 'deleted'}")
    if pruned.held:
        typer.echo(f"{pruned.held} left alone: a turn of them is being executed", err=True)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise StartupError("nobody can be asked here: say --yes to delete")
    if not typer.confirm(one_line(question)):
        raise StartupError("nothing was deleted")


def _delete_all_of(user: str, *, yes: bool, wait_seconds: float, with_receipts: bool) -> list[str]:
    """Delete all that is stored of a user; return the sessions that are left."""
    found = on_database(lambda connection: list_sessions(connection, SessionFilter(user_id=user)))
    if not yes:
        _confirm(f"Delete all {len(found)} sessions of user {user}, and the replies that are kept?")

    async def delete(connection: asyncpg.Connection) -> tuple[list[str], int]:
        left = [one for one in found if not await _is_gone(connection, one, wait_seconds, with_receipts=with_receipts)]
        return [one.session_id for one in left], await forget_user(connection, user, with_receipts=with_receipts)

    left, receipts = on_database(delete)
    what = "deleted" if with_receipts else "emptied"
    typer.echo(f"{len(found) - len(left)} sessions deleted; {receipts} receipts of no session {what}")
    typer.echo(_NOT_REACHED, err=True)
    return left


async def _is_gone(
    connection: asyncpg.Connection, session: SessionOverview, wait_seconds: float, *, with_receipts: bool
) -> bool:
    outcome = await delete_session(
        connection, session.session_id, wait_seconds=wait_seconds, with_receipts=with_receipts
    )
    if outcome is Deleted.BUSY:
        _say_busy(session.session_id)
    return outcome is not Deleted.BUSY


def _asked_and_deleted(session_id: str, *, yes: bool, wait_seconds: float, with_receipts: bool) -> bool:
    """Delete a session, if whoever is asked says so. Return whether there is nothing of it any more."""
    session = on_database(lambda connection: show_session(connection, session_id, last=1))
    if session is None:
        typer.echo(printable(f"{session_id}: there is no such session"), err=True)
        return False
    if not yes:
        if not sys.stdin.isatty():
            raise StartupError("nobody can be asked here: say --yes to delete")
        target = session.team_id or session.agent_id or session.workflow_id
        whose = one_line(f"{session_id} ({session.session_type} {target}, user {session.user_id or '-'})")
        if not typer.confirm(f"Delete {whose} with all its runs?"):
            return False
    outcome = on_database(
        lambda connection: delete_session(
            connection, session_id, wait_seconds=wait_seconds, with_receipts=with_receipts
        )
    )
    if outcome is Deleted.BUSY:
        _say_busy(session_id)
    return outcome is not Deleted.BUSY


def _say_busy(session_id: str) -> None:
    line = f"{session_id}: a turn of it is being executed; nothing is deleted (--wait SECONDS)"
    typer.echo(printable(line), err=True)
