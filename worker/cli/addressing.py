"""Whom `teamturn ask` and `teamturn chat` talk to: the options that say so, and what --continue remembers of them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from schemas.requests import Decision, RunRequest
from worker.errors import StartupError

Team = Annotated[str | None, typer.Option("--team", help="The team to ask.", metavar="ID")]
Agent = Annotated[str | None, typer.Option("--agent", help="The agent to ask.", metavar="ID")]
Workflow = Annotated[str | None, typer.Option("--workflow", help="The workflow to run.", metavar="ID")]
Session = Annotated[str | None, typer.Option("--session", help="The session; a new one by default.")]
User = Annotated[str | None, typer.Option("--user", help="Whose session it is.")]
Continued = Annotated[bool, typer.Option("--continue", help="Go on with the session that was asked last.")]

Address = dict[str, str]
"""The fields of a request that say to whom it goes."""

_TARGETS: Final = ("team_id", "agent_id", "workflow_id")
_PAUSED: Final = "paused"
"""In what is remembered: the run that waits for a decision."""


def address_of(  # noqa: PLR0917 - the options, as they are given
    team: str | None, agent: str | None, workflow: str | None, session: str | None, user: str | None, continued: bool
) -> Address:
    """Return what the options mean together. Raises StartupError where nothing was asked yet that could go on."""
    given = {"team_id": team, "agent_id": agent, "workflow_id": workflow, "session_id": session, "user_id": user}
    address = {name: value for name, value in given.items() if value is not None}
    if not continued:
        return address
    last = {name: value for name, value in _last_session().items() if name != _PAUSED}
    if any(target in address for target in _TARGETS):
        last = {name: last[name] for name in ("session_id", "user_id") if name in last}
    return last | address


def request_to(address: Address, text: str, *, new_session: str) -> RunRequest:
    """Return a request; without a session it begins one, under a name that begins so. Raises StartupError."""
    run_id = str(uuid.uuid4())
    return _request({"session_id": f"{new_session}-{run_id}", "run_id": run_id, "input": text} | address)


def request_that_decides(address: Address, run_id: str | None, decisions: Sequence[Decision]) -> RunRequest:
    """Return a request that goes on with a paused run: by default the one that paused last. Raises StartupError."""
    if "session_id" not in address:
        raise StartupError("name the session of the paused run: --session, or --continue")
    paused = run_id or _last_session().get(_PAUSED)
    if paused is None:
        raise StartupError("the run that was asked last has not paused; name the paused one: --run")
    return _request({"run_id": str(uuid.uuid4()), "continues": paused, "decisions": list(decisions)} | address)


def _request(fields: dict[str, Any]) -> RunRequest:
    try:
        return RunRequest.model_validate(fields)
    except ValidationError as error:
        raise StartupError(_mistake(error)) from None


def remember(request: RunRequest, *, paused: str | None = None) -> None:
    """Keep whom a request goes to, and the run of its that is paused, for --continue."""
    kept = request.model_dump(include={"session_id", *_TARGETS, "user_id"}, exclude_none=True)
    if paused is not None:
        kept[_PAUSED] = paused
    try:
        _last_file().parent.mkdir(parents=True, exist_ok=True)
        _last_file().write_text(json.dumps(kept), encoding="utf-8")
    except OSError as error:
        typer.echo(f"--continue will not work: {error}", err=True)


def _mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{reason}; name it by --team, --agent or --workflow, or use --continue"
    field = str(first["loc"][0])
    return f"--{field.removesuffix('_id')}: {reason}"


def _last_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "teamturn" / "last_session.json"


def _last_session() -> Address:
    try:
        return dict(json.loads(_last_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise StartupError("there is no session to continue yet; ask without --continue first") from None
