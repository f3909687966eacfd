"""The claimed session, as Agno's object: with the last runs as Agno's runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

import structlog
from agno.db.utils import get_run_type
from agno.run.agent import RunOutput
from agno.run.team import TeamRunOutput
from agno.run.workflow import WorkflowRunOutput
from agno.session import AgentSession, TeamSession, WorkflowSession
from agno.session.summary import SessionSummary

from schemas.ids import SessionType, Target
from worker.executors.turn import JsonObject, PastRun, Turn

_RUNS: Final[Mapping[str, Any]] = {"agent": RunOutput, "team": TeamRunOutput, "workflow": WorkflowRunOutput}
_SESSIONS: Final[Mapping[SessionType, Any]] = {
    SessionType.AGENT: AgentSession,
    SessionType.TEAM: TeamSession,
    SessionType.WORKFLOW: WorkflowSession,
}

_log = structlog.get_logger()


def session_of(turn: Turn, target: Target, name: str, defaults: Mapping[str, Any] | None) -> Any:
    """Return the session of a turn; `defaults` are the keys that a state begins with, as in our own teams."""
    data: JsonObject = {"session_state": deepcopy({**(defaults or {}), **turn.session_state})}
    if turn.session_name is not None:
        data["session_name"] = turn.session_name
    kind = target.type.value
    described = {"name": name, f"{kind}_id": target.id}
    session = _SESSIONS[target.type](
        session_id=turn.session_id,
        user_id=turn.user_id,
        session_data=data,
        metadata=deepcopy(turn.metadata),
        runs=list(_runs(turn, target, name)),
        created_at=int(time.time()),
        **{f"{kind}_id": target.id, f"{kind}_data": described},
    )
    if turn.summary is not None and target.type is not SessionType.WORKFLOW:
        session.summary = SessionSummary(summary=turn.summary)
    return session


def introduction_of(agno: Any, target: Target) -> Any:
    """Return the run that Agno begins a session with where an object introduces itself; it is not stored."""
    kind = target.type.value
    told = {"role": agno.model.assistant_message_role, "content": agno.introduction}
    run = {f"{kind}_id": target.id, "run_id": "introduction", "status": "COMPLETED", "messages": [told]}
    return _RUNS[kind].from_dict({**run, "content": agno.introduction})


def _runs(turn: Turn, target: Target, name: str) -> Iterator[Any]:
    """Return the session's last runs: as they were stored; where that can't be had, as what was asked and answered."""
    whole = {run.get("run_id") for run in turn.whole_history}
    # What is lacking there are the oldest: what does not fit is left out from there.
    yield from (_told(past, target, name) for past in turn.history if past.run_id not in whole)
    told = {run.run_id: run for run in turn.history}
    for stored in turn.whole_history:
        run = _read(stored, target)
        if run is not None:
            yield run
        elif (past := told.get(str(stored.get("run_id")))) is not None:
            yield _told(past, target, name)


def _read(stored: JsonObject, target: Target) -> Any | None:
    kind = get_run_type(stored)
    if target.type is SessionType.WORKFLOW and kind != "workflow":
        return None  # a step's: the workflow's own run has it as well
    try:
        return _RUNS[kind].from_dict(stored)
    except Exception as error:  # noqa: BLE001 - whatever other programs, and other versions of Agno, have stored
        _log.warning("agno_run_unreadable", stored_run_id=stored.get("run_id"), reason=type(error).__name__)
        return None


def _told(past: PastRun, target: Target, name: str) -> Any:
    kind = target.type.value
    told: JsonObject = {
        "run_id": past.run_id,
        f"{kind}_id": target.id,
        f"{kind}_name": name,
        "content": past.content,
        "status": "COMPLETED",
        "created_at": past.created_at,
    }
    if target.type is SessionType.WORKFLOW:
        return WorkflowRunOutput.from_dict(told | {"input": past.input})
    messages = [{"role": "user", "content": past.input}, {"role": "assistant", "content": past.content_text}]
    return _RUNS[kind].from_dict(told | {"input": {"input_content": past.input}, "messages": messages})
