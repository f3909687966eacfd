"""The command `teamturn chat`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from schemas.requests import RunRequest
from worker.cli.addressing import (
    Address,
    Agent,
    Continued,
    Session,
    Team,
    User,
    Workflow,
    address_of,
    remember,
    request_to,
)
from worker.cli.chat.piped import lines_of_standard_input
from worker.cli.chat.screens import PlainScreen
from worker.cli.chat.stored import StoredHere
from worker.cli.chat.talk import Talk
from worker.cli.terminal import one_line
from worker.client import RunClient
from worker.settings import Settings

_FAILED: Final = 1
_INTERRUPTED: Final = 130
"""What shells call a program that Ctrl-C ended."""


def chat(
    *,
    team: Team = None,
    agent: Agent = None,
    workflow: Workflow = None,
    session: Session = None,
    user: User = None,
    continued: Continued = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.", min=0.1)] = 600,
) -> None:
    """Talk with a team, in a terminal or through a pipe.

    \b
      teamturn chat --team capital
      teamturn chat --continue
      printf 'Hello.\\nWhat did I say?\\n' | teamturn chat --team capital

    Answers are shown as they are written, and what members and tools do. You can
    type on meanwhile: it is sent when its turn comes. Ctrl-C stops an answer.
    /state, /history, /cancel, /quit and /help are commands.

    Through a pipe each line is a turn: answers go to standard output, all else to
    standard error, and the exit code is 0 if all completed, 1 if not; 2 is a mistake.
    """  # noqa: D301 - \b has typer keep the lines below it
    settings = Settings.read()
    address = address_of(team, agent, workflow, session, user, continued)
    # A first one, to find mistakes before anything is said, and to name the session.
    first = request_to(address, "", new_session="chat")
    address["session_id"] = first.session_id
    remember(first)
    try:
        sys.exit(asyncio.run(_talk(settings, first, address, timeout)))
    except BrokenPipeError:
        # Whoever read the answers has left. Python flushes standard output once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_FAILED)


async def _talk(settings: Settings, first: RunRequest, address: Address, timeout_seconds: float) -> int:
    stored = StoredHere(settings, first.session_id, first.user_id)

    def request(text: str) -> RunRequest:
        return request_to(address, text, new_session="chat")

    async with RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client:
        if _at_terminal():
            await _talk_at_terminal(client, stored, request, timeout_seconds, _beginning(first))
            return 0
        screen = PlainScreen()
        talk = Talk(client, screen, stored, request, timeout_seconds=timeout_seconds)
        screen.aside(_beginning(first))
        with _signals(talk):
            await talk.run(lines_of_standard_input(), one_by_one=True)
        return _INTERRUPTED if talk.was_interrupted else 0 if talk.all_completed else _FAILED


async def _talk_at_terminal(
    client: RunClient, stored: StoredHere, request: Callable[[str], RunRequest], timeout_seconds: float, beginning: str
) -> None:
    from worker.cli.chat.prompt import TerminalScreen, typed  # noqa: PLC0415 - a tenth of a second, only where it is used

    async with TerminalScreen() as screen:
        talk = Talk(client, screen, stored, request, timeout_seconds=timeout_seconds)
        screen.aside(f"{beginning} · /help")
        with _signals(talk):
            await talk.run(typed(screen, interrupted=talk.interrupt), one_by_one=False)


def _beginning(first: RunRequest) -> str:
    return f"{first.target.type.value} {one_line(first.target.id)} · session {one_line(first.session_id)}"


def _at_terminal() -> bool:
    """Whether somebody types here, at a terminal that can show a prompt below an answer."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}


@contextmanager
def _signals(talk: Talk) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end no more than they should."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, talk.interrupt)
    loop.add_signal_handler(signal.SIGTERM, talk.leave)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
