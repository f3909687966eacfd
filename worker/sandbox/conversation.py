"""What the demo shows: two requests of one session, their replies, and the session as it is stored."""

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
            request = RunRequest(
                run_id=str(uuid.uuid4()),
                session_id=session_id,
                team_id="demo",
                user_id="demo-user",
                input=question,
            )
            _show(console, f"Request {number}", request.model_dump_json(exclude_defaults=True))
            try:
                reply = await client.run(request, timeout_seconds=_REPLY_SECONDS)
            except TimeoutError as exc:
                raise WrongAnswerError(f"{question!r} got no reply within {_REPLY_SECONDS} s.") from exc
            _show(console, f"Reply {number}", reply.model_dump_json())
            check_answer(question, expected, reply)
    await _show_session(stage, session_id, console)
    return session_id


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
