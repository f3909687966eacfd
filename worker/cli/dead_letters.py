"""How dead letters are printed: nothing of them reaches the terminal but text that it shows."""

from __future__ import annotations

import json
from typing import Final

import typer
from pydantic import BaseModel
from pydantic_core import from_json
from rich.console import Console

from schemas.dead_letters import DeadLetter, DeadLetterContent
from worker.cli.terminal import age, cut, one_line, printable, size

_SHOWN_CHARACTERS: Final = 4_000


def print_json(model: BaseModel) -> None:
    """Print a line of JSON."""
    # ASCII alone: what is in a message must not reach the terminal as it is.
    typer.echo(json.dumps(model.model_dump(mode="json")))


def print_line(letter: DeadLetter, console: Console) -> None:
    """Print a dead letter in a list: its id, whose it is, and why it is there."""
    console.print(one_line(letter.id), style="bold", soft_wrap=True)
    for line in (_whose(letter), letter.reason):
        if line:
            console.print(f"  {cut(one_line(line), console.width - 2)}", soft_wrap=True)


def _whose(letter: DeadLetter) -> str:
    when = "at an unknown time" if letter.time is None else age(int(letter.time.timestamp()))
    target = letter.target_id and f"{letter.target_type} {letter.target_id}"
    session = letter.session_id and f"session {letter.session_id}"
    parts = (when, letter.code or "no code", target, session, size(letter.size_bytes))
    return " · ".join(part for part in parts if part)


def print_content(content: DeadLetterContent, body: bytes, console: Console, *, full: bool) -> None:
    """Print all of a dead letter; of a long body the beginning, but with `full`."""
    console.print(one_line(content.id), style="bold")
    console.print(f"  {one_line(_whose(content))}")
    for name in ("reason", "queue", "run_id", "attempts", "steps", "tokens"):
        value = getattr(content, name)
        if value is not None:
            console.print(f"  {name} {one_line(str(value))}")
    for title, values in (("headers", content.headers), ("properties", content.properties)):
        console.print(f"{title}", style="dim")
        for name, value in values.items():
            console.print(f"  {one_line(name)}: {one_line(value if isinstance(value, str) else json.dumps(value))}")
    text = printable(_readable(body))
    shown = text if full else text[:_SHOWN_CHARACTERS]
    console.print("body", style="dim")
    console.print(shown)
    if len(shown) < len(text):
        console.print(f"… {len(text) - len(shown)} more characters: --full", style="dim")


def _readable(body: bytes) -> str:
    """Return a body as text: JSON indented, anything else as it is."""
    text = body.decode(errors="replace")
    try:
        parsed = from_json(body)
        return json.dumps(parsed, indent=2, ensure_ascii=False) if isinstance(parsed, dict | list) else text
    except (ValueError, RecursionError):
        return text
