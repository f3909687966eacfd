"""How sessions are printed: nothing of them reaches the terminal but text that it shows, and 80 columns are enough."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from schemas.sessions import JsonObject, SessionOverview, StoredSession, object_of
from worker.cli.terminal import age, one_line, printable
from worker.executors.turn import text_of

_INDENT: Final = 4
_BAD: Final = frozenset({"ERROR", "CANCELLED"})


def session_table(sessions: Sequence[SessionOverview]) -> Table:
    """Return sessions as a table, one a line."""
    table = Table(box=None, pad_edge=False)
    # At 80 columns a UUID is whole, and the rest is cut; a longer id goes on in the next line.
    table.add_column("session", overflow="fold")
    table.add_column("target", no_wrap=True, overflow="ellipsis", max_width=15)
    table.add_column("user", no_wrap=True, overflow="ellipsis", max_width=8)
    table.add_column("runs", no_wrap=True, justify="right")
    table.add_column("active", no_wrap=True)
    for one in sessions:
        # Text, not markup: an id may hold brackets.
        target = Text(one_line(f"{one.session_type} {one.target_id}"))
        name = Text(one_line(one.session_id))
        if one.name:
            name.append(f"\n  {one_line(one.name)}", style="italic")
        active = age(one.updated_at or one.created_at)
        table.add_row(name, target, Text(one_line(one.user_id or "-")), str(one.runs), active)
    return table


def print_session(session: StoredSession, console: Console, *, earlier: bool) -> None:
    """Print a session's transcript, members' runs within the run that they belong to; `earlier`: it had more turns."""
    data = object_of(session.session_data)
    target = session.team_id or session.agent_id or session.workflow_id
    console.print(printable(f"session {session.session_id}"), style="bold")
    if isinstance(name := data.get("session_name"), str):
        console.print(f"  {one_line(name)}", style="italic")
    console.print(printable(f"  {session.session_type} {target} · user {session.user_id or '-'}"))
    console.print(f"  created {_time(session.created_at)} · updated {_time(session.updated_at or session.created_at)}")
    if tokens := _tokens(data.get("session_metrics")):
        console.print(f"  {tokens}")
    for title, value in (
        ("summary", object_of(session.summary).get("summary")),
        ("state", data.get("session_state")),
        ("metadata", session.metadata),
    ):
        if value:
            console.print(Padding(printable(f"{title} {text_of(value)}"), (0, 0, 0, 2), expand=False))
    if earlier:
        console.print("\n  … earlier turns: --last N, or --all", style="dim")
    _Transcript([object_of(run) for run in session.runs], console).print()


class _Transcript:
    def __init__(self, runs: Sequence[JsonObject], console: Console) -> None:
        self._console = console
        ids = {run.get("run_id") for run in runs}
        self._below: dict[object, list[JsonObject]] = defaultdict(list)
        for run in runs:
            parent = run.get("parent_run_id")
            self._below[parent if parent in ids else None].append(run)

    def print(self) -> None:
        for run in self._below[None]:
            self._console.print()
            self._print_run(run, indent=2)

    def _print_run(self, run: JsonObject, *, indent: int) -> None:
        parts = [self._who(run), str(run.get("status")), _tokens(run.get("metrics"))]
        status = "red" if run.get("status") in _BAD else "dim"
        self._line(" · ".join(part for part in parts if part), indent, style=status)
        given = run.get("input")
        asked = given.get("input_content") if isinstance(given, dict) else given
        if asked is not None:
            self._line(f"> {text_of(asked)}", indent)
        for member in self._below[run.get("run_id")]:
            self._print_run(member, indent=indent + _INDENT)
        if run.get("content") is not None:
            self._line(text_of(run["content"]), indent)
        if isinstance(error := run.get("error"), dict):
            self._line(f"{error.get('code')}: {error.get('message')}", indent, style="red")

    def _who(self, run: JsonObject) -> str:
        if not run.get("parent_run_id"):
            return f"run {run.get('run_id')}"
        return str(run.get("agent_name") or run.get("team_name") or run.get("agent_id") or run.get("team_id"))

    def _line(self, text: str, indent: int, style: str | None = None) -> None:
        self._console.print(Padding(Text(printable(text), style=style or ""), (0, 0, 0, indent), expand=False))


def _tokens(metrics: Any) -> str:  # noqa: ANN401 - JSON
    """Return the tokens of a run or a session; nothing where there are none."""
    if not isinstance(metrics, dict):
        return ""
    total, read, written = (metrics.get(f"{name}_tokens") for name in ("total", "input", "output"))
    if not isinstance(total, int) or not total:
        return ""
    parts = f" ({read:,} in, {written:,} out)" if isinstance(read, int) and isinstance(written, int) else ""
    return f"{total:,} tokens{parts}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
