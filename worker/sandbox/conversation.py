"""What the demo shows: two requests of a session, one to a team of two members, and the session as it is stored."""

import json
import uuid
from dataclasses import dataclass
from typing import Final

import asyncpg
from rich.console import Console, RenderableType
from rich.json import JSON
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from schemas.replies import RunReply, RunStatus
from schemas.requests import RunRequest
from worker.client import RunClient

# Each question with what its answer must hold; the second can only be answered from the session.
QUESTIONS: Final = (
    ("What is the capital of France?", "Paris"),
    ("What was my question?", "What is the capital of France?"),
)
# Asked of a team whose two members answer at the same time, in a session of its own.
PANEL_QUESTION: Final = ("What is the capital of Italy?", "Rome")
PANEL_MEMBERS: Final = 2
_REPLY_SECONDS = 120


class WrongAnswerError(Exception):
    """The answer is not the one that the demo is about; the text says so in a sentence."""


@dataclass(frozen=True)
class Stage:
    """Where the conversation takes place."""

    amqp_url: str
    postgres_url: str
    prefix: str
    schema: str


async def converse(stage: Stage, console: Console) -> str:
    """Ask the questions and show everything; return the session's id. WrongAnswerError if an answer is wrong."""
    session_id = f"demo-{uuid.uuid4().hex[:8]}"
    async with RunClient(stage.amqp_url, prefix=stage.prefix) as client:
        for number, (question, expected) in enumerate(QUESTIONS, start=1):
            reply = await _ask(client, console, str(number), team_id="demo", session_id=session_id, question=question)
            check_answer(question, expected, reply)
        question, expected = PANEL_QUESTION
        reply = await _ask(
            client, console, "3, to a team of two", team_id="panel", session_id=f"{session_id}-panel", question=question
        )
        check_answer(question, expected, reply)
        check_members(reply)
    await _show_session(stage, session_id, console)
    return session_id


async def _ask(
    client: RunClient, console: Console, title: str, *, team_id: str, session_id: str, question: str
) -> RunReply:
    request = RunRequest(
        run_id=str(uuid.uuid4()),
        session_id=session_id,
        team_id=team_id,
        user_id="demo-user",
        input=question,
    )
    _show(console, f"Request {title}", request.model_dump_json(exclude_defaults=True))
    try:
        reply = await client.run(request, timeout_seconds=_REPLY_SECONDS)
    except TimeoutError as exc:
        raise WrongAnswerError(f"{question!r} got no reply within {_REPLY_SECONDS} s.") from exc
    _show(console, f"Reply {title}", reply.model_dump_json())
    return reply


def check_members(reply: RunReply) -> None:
    """Raise WrongAnswerError unless both members of the panel have answered."""
    answered = [one for one in reply.member_responses if one.status is RunStatus.COMPLETED and one.content]
    if len(answered) != PANEL_MEMBERS:
        raise WrongAnswerError(f"{len(answered)} of the panel's {PANEL_MEMBERS} members have answered.")


def check_answer(question: str, expected: str, reply: RunReply) -> None:
    """Raise WrongAnswerError unless the run completed and its answer holds what is expected."""
    if reply.status is not RunStatus.COMPLETED:
        reason = f": {reply.error.message}" if reply.error else ""
        raise WrongAnswerError(f"The run of {question!r} ended as {reply.status.value}{reason}.")
    if expected.casefold() not in str(reply.content).casefold():
        raise WrongAnswerError(f"The answer to {question!r} should hold {expected!r}, but is {reply.content!r}.")


def _show(console: Console, title: str, json_text: str) -> None:
    console.print()
    console.print(Rule(title, align="left", style="dim"))
    console.print(Padding(_json(json_text), (0, 0, 0, 2)))


def _json(json_text: str) -> RenderableType:
    shown = JSON(json_text, indent=2).text
    shown.no_wrap = False  # by default, rich cuts what does not fit
    shown.overflow = "fold"
    return shown


async def _show_session(stage: Stage, session_id: str, console: Console) -> None:
    connection = await asyncpg.connect(stage.postgres_url)
    try:
        # The schema's name is one of ours to choose, and checked by the settings.
        query = f'select * from "{stage.schema}".sessions where session_id = $1'  # noqa: S608
        row = await connection.fetchrow(query, session_id)
    finally:
        await connection.close()
    if row is None:
        raise WrongAnswerError(f"The session {session_id} is not stored in {stage.schema}.sessions.")
    console.print()
    console.print(Rule(f"Stored: {stage.schema}.sessions, its {len(row)} fields", align="left", style="dim"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value in row.items():
        table.add_row(name, _field(value))
    console.print(Padding(table, (0, 0, 0, 2)))


def _field(value: object) -> RenderableType:
    """Show a column: asyncpg gives JSON as text."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            json.loads(value)
        except ValueError:
            return Text(value)
        return _json(value)
    return Text("null" if value is None else str(value), style="dim" if value is None else "")
