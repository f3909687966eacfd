"""`teamturn ask`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Final

import typer
from pydantic import ValidationError

from schemas.events import MemberFinished, MemberStarted, RunEvent, RunStarted, ToolStarted
from schemas.replies import RunReply, RunStatus
from schemas.requests import Decision, RunRequest
from worker.cli.addressing import (
    Agent,
    Continued,
    Session,
    Team,
    User,
    Workflow,
    address_of,
    remember,
    request_that_decides,
    request_to,
)
from worker.cli.approvals import decisions_of, question_of
from worker.cli.terminal import cut, json_line, one_line, printable
from worker.client import RunClient
from worker.errors import ClientTimedOut, StartupError
from worker.executors.turn import text_of
from worker.settings import Settings

_ARGUMENTS_COLUMNS: Final = 50


def ask(
    text: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    *,
    team: Team = None,
    agent: Agent = None,
    workflow: Workflow = None,
    session: Session = None,
    user: User = None,
    continued: Continued = False,
    approve: Annotated[
        list[str] | None, typer.Option(help="A call that a paused run waits for: it is made.", metavar="CALL")
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(help="A call that is not made, and maybe why.", metavar="CALL[=WHY]")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="The paused run; by default the one that was asked last.", metavar="ID")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply as JSON.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the reply.", min=0.1)] = 600,
) -> None:
    """Publish one request and print its reply.

    The answer goes to standard output, its session to standard error.

    \b
      teamturn ask "What is the capital of France?" --team capital
      teamturn ask "What was my question?" --continue
      teamturn ask "Tell me a story." --continue --stream
      teamturn ask --continue --approve call_1 --deny call_2="too dear"

    A run that waits for approval says for what on standard error; the last line goes on with it.

    With --stream what members and tools do is told on standard error, as it happens; with --json each event is a line.

    Exit code 0 if the run completed, 1 if not, 2 for a mistake.
    """  # noqa: D301 - \b has typer keep the lines below it
    settings = Settings.read()
    address, decisions = address_of(team, agent, workflow, session, user, continued), _decisions(approve, deny)
    if (text is None) == (not decisions):
        raise StartupError("say what to ask, or decide about a paused run: --approve, --deny")
    if text is None:
        request = request_that_decides(address, run, decisions)
    else:
        request = request_to(address, text, new_session="ask")
    # Before the answer is there: who does not wait for it can go on with the session all the same.
    remember(request)
    if stream:
        reply = asyncio.run(_streamed(request, settings, timeout, as_json=as_json))
    else:
        reply = asyncio.run(_reply_to(request, settings, timeout))
        typer.echo(json_line(reply, indent=2) if as_json else printable(text_of(reply.content)))
    if reply.status is RunStatus.PAUSED:
        remember(request, paused=reply.answered_by or reply.run_id)
        for approval in reply.approvals:
            typer.echo(f"{question_of(approval)} --approve or --deny {one_line(approval.tool_call_id)}", err=True)
    typer.echo(_footer(reply), err=True)
    raise typer.Exit(0 if reply.status is RunStatus.COMPLETED else 1)


def _decisions(approve: list[str] | None, deny: list[str] | None) -> list[Decision]:
    try:
        return decisions_of(approve or (), deny or ())
    except ValidationError as error:
        raise StartupError(f"--approve, --deny: {error.errors()[0]['msg']}") from None


@asynccontextmanager
async def _client(request: RunRequest, settings: Settings) -> AsyncIterator[RunClient]:
    async with RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client:
        try:
            yield client
        except ClientTimedOut as error:
            raise StartupError(
                f"{error} What was published stays queued, and the answer will be in the session {request.session_id}"
            ) from None


async def _reply_to(request: RunRequest, settings: Settings, timeout_seconds: float) -> RunReply:
    async with _client(request, settings) as client:
        return await client.run(request, timeout_seconds=timeout_seconds)


async def _streamed(request: RunRequest, settings: Settings, timeout_seconds: float, *, as_json: bool) -> RunReply:
    """Print a run's events as they happen, and return its reply."""
    written = False
    async with (
        _client(request, settings) as client,
        aclosing(client.stream(request, timeout_seconds=timeout_seconds)) as events,
    ):
        async for event in events:
            if as_json:
                typer.echo(json_line(event))
            elif event.type == "content_delta" and event.member_run_id is None:
                typer.echo(printable(event.text), nl=False)
                written = True
            elif (line := _told(event)) is not None:
                typer.echo(line, err=True)
            if event.type == "run_finished":
                if not as_json:
                    # Structured output, and what was recorded before a crash, is written by no model here.
                    typer.echo("" if written else printable(text_of(event.reply.content)))
                return event.reply
    raise AssertionError("a stream ends with run_finished")


def _told(event: RunEvent) -> str | None:
    """Return a line that says what happens beside the answer."""
    match event:
        case MemberStarted():
            return f"· {one_line(event.member_id)} …"
        case MemberFinished() if event.status is not RunStatus.COMPLETED:
            return f"· {one_line(event.member_id)}: {event.status.value}"
        case ToolStarted():
            return f"· {one_line(event.tool)}({cut(one_line(text_of(event.arguments)), _ARGUMENTS_COLUMNS)})"
        case RunStarted() if event.resumed_behind is not None:
            return f"· goes on, attempt {event.attempt}"
        case _:
            return None


def _footer(reply: RunReply) -> str:
    parts = [f"session {reply.session_id}", reply.status.value]
    if reply.turn is not None:
        parts.append(f"turn {reply.turn}")
    if reply.error is not None:
        parts.append(f"{reply.error.code.value}: {printable(reply.error.message)}")
    return " · ".join(parts)
