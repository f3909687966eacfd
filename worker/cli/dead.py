"""`teamturn dead`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import asyncpg
import typer
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console

from schemas.dead_letters import DeadLetterDone
from schemas.ids import SessionType
from worker.broker import connected
from worker.cli.dead_letters import print_content, print_json, print_line
from worker.cli.terminal import one_line
from worker.cli.times import moment_of
from worker.errors import StartupError
from worker.intake.topology import Topology
from worker.operations.dead_letter_queue import DeadLetterQueue, dead_letter_queue
from worker.operations.dead_letters import Selection, content_of, dead_letter, fingerprint_of
from worker.operations.replay import replay
from worker.sessions.database import application_name, connect
from worker.sessions.migrations import require_current
from worker.settings import Settings

app = typer.Typer(help="What could not be executed: {prefix}.dead.", no_args_is_help=True)

_Ids = Annotated[list[str] | None, typer.Argument(help="As `teamturn dead list` shows them.", metavar="ID")]
_Code = Annotated[str | None, typer.Option("--code", help="Those of this code, misrouted say.")]
_Session = Annotated[str | None, typer.Option("--session", help="Those of this session.", metavar="ID")]
_Run = Annotated[str | None, typer.Option("--run", help="Those of this run.", metavar="ID")]
_User = Annotated[str | None, typer.Option("--user", help="Those of this user.", metavar="ID")]
_Team = Annotated[str | None, typer.Option("--team", help="Those for this team.", metavar="ID")]
_Agent = Annotated[str | None, typer.Option("--agent", help="Those for this agent.", metavar="ID")]
_Workflow = Annotated[str | None, typer.Option("--workflow", help="Those for this workflow.", metavar="ID")]
_Since = Annotated[str | None, typer.Option("--since", help="Those buried since: 30min, 2h, 3d, or a time.")]
_All = Annotated[bool, typer.Option("--all", help="All of them.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, a dead letter a line.")]


@app.command("list")
def list_command(
    *,
    code: _Code = None,
    session: _Session = None,
    run: _Run = None,
    user: _User = None,
    team: _Team = None,
    agent: _Agent = None,
    workflow: _Workflow = None,
    since: _Since = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many at most.")] = 20,
    as_json: _AsJson = False,
) -> None:
    """List dead letters, the oldest first.

    None is taken out, but for this moment nobody else sees those that are looked at, and to RabbitMQ it is a delivery,
    of which it allows a million. Of each, its id for the other commands (the run_id, if it has one), when it was
    buried, its code, whose it is, its size, and the reason:

    \b
      $ teamturn dead list --code attempts_exhausted --since 2h
      5f0f3c52-0f57-4a8e-9c0b-2f1d7f6e2b11
        3 min ago · attempts_exhausted · team capital · session s1 · 412 B
        3 attempts ended without a further step
    """  # noqa: D301 - \b has typer keep the lines below it
    selection = _selection(None, code, session, run, user, team, agent, workflow, since)
    console = Console(highlight=False, markup=False)

    async def look(queue: DeadLetterQueue) -> None:
        shown = looked_at = 0
        async for message in queue.messages():
            looked_at += 1
            letter = dead_letter(message)
            if letter not in selection:
                continue
            shown += 1
            if as_json:
                print_json(letter)
            else:
                print_line(letter, console)
            if shown == limit:
                break
        if not as_json and not shown:
            typer.echo("no dead letters" if not queue.count else "no dead letter is like that")
        if shown == limit and looked_at < queue.count:
            typer.echo(f"{queue.count - looked_at} more were not looked at: --limit {queue.count}", err=True)

    asyncio.run(_looking(look))


@app.command("show")
def show_command(
    letter_id: Annotated[str, typer.Argument(help="As `teamturn dead list` shows it.", metavar="ID")],
    *,
    full: Annotated[bool, typer.Option("--full", help="Print all of the body, however long.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Show all of a dead letter.

    Why it is there, its headers, properties and body.

    Of several of one id, each. A body that is JSON is indented; what could move the terminal's cursor is left out.
    With --json it is as it was sent, in base64 if it is not UTF-8.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)

    async def look(queue: DeadLetterQueue) -> None:
        found = False
        async for message in queue.messages():
            content = content_of(message)
            if content.id != letter_id:
                continue
            found = True
            if as_json:
                print_json(content)
            else:
                print_content(content, message.body, console, full=full)
        if not found:
            raise StartupError(f"there is no dead letter {letter_id!r}: teamturn dead list shows them")

    asyncio.run(_looking(look))


@app.command("replay")
def replay_command(
    ids: _Ids = None,
    *,
    code: _Code = None,
    session: _Session = None,
    run: _Run = None,
    user: _User = None,
    team: _Team = None,
    agent: _Agent = None,
    workflow: _Workflow = None,
    since: _Since = None,
    everything: _All = False,
    dry_run: _DryRun = False,
    as_json: _AsJson = False,
) -> None:
    """Publish dead letters again, to be executed.

    A run that is stored as ERROR is reopened: it stays in the session's history as REGENERATED, and the request is
    executed as the session's latest turn, its next attempt. Only this command does that; who publishes a run_id again
    gets the stored reply. The new reply has the run_id as its message_id, as the first one had.

    What is no request is left there: it would only come back. Each leaves the queue when RabbitMQ has confirmed it.

    \b
      $ teamturn dead replay order-4711
      replayed order-4711: its failed run is reopened for attempt 4
      1 replayed, 0 skipped
      $ teamturn dead replay --code misrouted --dry-run

    Exit code 1 if something was skipped or not found.
    """  # noqa: D301 - \b has typer keep the lines below it
    selection = _chosen(ids, code, session, run, user, team, agent, workflow, since, everything=everything)
    settings = Settings.read()

    async def work(queue: DeadLetterQueue, database: asyncpg.Connection) -> _Tally:
        async def act(message: AbstractIncomingMessage) -> DeadLetterDone:
            return await replay(queue, message, database, largest_bytes=settings.max_request_bytes, dry_run=dry_run)

        return await _done_with_each(queue, selection, act, as_json=as_json)

    async def run_it() -> _Tally:
        database = await connect(settings.postgres_url, settings.db_schema, application=application_name("dead"))
        try:
            await require_current(database, settings.db_schema)
            async with _opened(settings) as queue:
                return await work(queue, database)
        finally:
            await database.close()

    _conclude(asyncio.run(run_it()), selection, "replayed", dry_run=dry_run, as_json=as_json)


@app.command("drop")
def drop_command(
    ids: _Ids = None,
    *,
    code: _Code = None,
    session: _Session = None,
    run: _Run = None,
    user: _User = None,
    team: _Team = None,
    agent: _Agent = None,
    workflow: _Workflow = None,
    since: _Since = None,
    everything: _All = False,
    dry_run: _DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Take dead letters out of the queue, for good.

    It asks first. A stored run stays as it is.

    \b
      $ teamturn dead drop --code malformed_request --dry-run
      $ teamturn dead drop --all --yes

    Exit code 1 if something was not found.
    """  # noqa: D301 - \b has typer keep the lines below it
    selection = _chosen(ids, code, session, run, user, team, agent, workflow, since, everything=everything)
    meant: Counter[bytes] | None = None
    if not (yes or dry_run):
        meant = asyncio.run(_looking(lambda queue: _fingerprints(queue, selection)))
        _ask_about(meant.total())

    async def work(queue: DeadLetterQueue) -> _Tally:
        async def act(message: AbstractIncomingMessage) -> DeadLetterDone | None:
            if meant is not None:
                # What came while it was asked about is not what was asked about.
                if not meant[fingerprint_of(message)]:
                    return None
                meant[fingerprint_of(message)] -= 1
            if not dry_run:
                await queue.remove(message)
            return DeadLetterDone(id=dead_letter(message).id, action="dropped", detail=None, dry_run=dry_run)

        return await _done_with_each(queue, selection, act, as_json=as_json)

    _conclude(asyncio.run(_looking(work)), selection, "dropped", dry_run=dry_run, as_json=as_json)


# --- which are meant ---


def _selection(  # noqa: PLR0917 - each is a filter
    ids: list[str] | None,
    code: str | None,
    session: str | None,
    run: str | None,
    user: str | None,
    team: str | None,
    agent: str | None,
    workflow: str | None,
    since: str | None,
) -> Selection:
    kinds = {SessionType.TEAM: team, SessionType.AGENT: agent, SessionType.WORKFLOW: workflow}
    targets = [(kind, name) for kind, name in kinds.items() if name is not None]
    if len(targets) > 1:
        raise StartupError("give one of --team, --agent and --workflow: a request is for one")
    target_type, target_id = targets[0] if targets else (None, None)
    return Selection(
        frozenset(ids or ()),
        code,
        session,
        run,
        user,
        target_type,
        target_id,
        None if since is None else moment_of(since),
    )


def _chosen(ids: list[str] | None, *filters: str | None, everything: bool) -> Selection:
    """Return what a command that changes something is to change: it must have been said."""
    if everything == bool(ids or any(one is not None for one in filters)):
        raise StartupError("say which dead letters: ids as teamturn dead list shows them, filters, or --all")
    code, session, run, user, team, agent, workflow, since = filters
    return _selection(ids, code, session, run, user, team, agent, workflow, since)


# --- going through the queue ---


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[DeadLetterQueue]:
    topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
    async with (
        connected(settings.amqp_url, name=application_name("dead")) as broker,
        dead_letter_queue(broker.amqp, topology) as queue,
    ):
        yield queue


async def _looking(look: Callable[[DeadLetterQueue], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what `look` returns
    async with _opened(Settings.read()) as queue:
        return await look(queue)


async def _fingerprints(queue: DeadLetterQueue, selection: Selection) -> Counter[bytes]:
    return Counter([fingerprint_of(message) async for message in queue.messages() if dead_letter(message) in selection])


@dataclass
class _Tally:
    """What came of going through the queue."""

    done: int = 0
    skipped: int = 0
    found: frozenset[str] = frozenset()


async def _done_with_each(
    queue: DeadLetterQueue,
    selection: Selection,
    act: Callable[[AbstractIncomingMessage], Awaitable[DeadLetterDone | None]],
    *,
    as_json: bool,
) -> _Tally:
    tally = _Tally()
    async for message in queue.messages():
        if dead_letter(message) not in selection:
            continue
        done = await act(message)
        if done is None:
            continue
        tally.done += done.action != "skipped"
        tally.skipped += done.action == "skipped"
        tally.found |= {done.id}
        if as_json:
            print_json(done)
        else:
            would = "would be " if done.dry_run else ""
            detail = "" if done.detail is None else f": {done.detail}"
            typer.echo(one_line(f"{would}{done.action} {done.id}{detail}"))
    return tally


def _ask_about(number: int) -> None:
    if not number:
        return
    try:
        agreed = typer.confirm(f"Drop {number} dead letter{'s' * (number != 1)} for good?")
    except typer.Abort:
        raise StartupError("nobody answered, and nothing was dropped: --yes drops without asking") from None
    if not agreed:
        raise StartupError("nothing was dropped")


def _conclude(tally: _Tally, selection: Selection, verb: str, *, dry_run: bool, as_json: bool) -> None:
    missing = sorted(selection.ids - tally.found)
    for letter_id in missing:
        typer.echo(f"there is no dead letter {one_line(letter_id)!r}", err=True)
    if not as_json:
        would = " would be" if dry_run else ""
        skipped = f", {tally.skipped} skipped" if verb == "replayed" else ""
        typer.echo(f"{tally.done}{would} {verb}{skipped}")
    if tally.skipped or missing:
        raise typer.Exit(1)
