"""What a run of Agno's leaves, as the turn's: state, name, members' runs, and what is stored of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import structlog
from agno.run.base import RunStatus as AgnoStatus
from agno.run.team import TeamRunOutput
from agno.run.workflow import WorkflowRunOutput
from pydantic import ValidationError

from schemas.ids import SessionType, Target
from schemas.replies import RunStatus
from worker.agno.database import SessionInTurn
from worker.agno.failures import failure_of_run, without_texts
from worker.errors import ModelFailed, TurnFailed
from worker.executors.json_values import MAX_LEVELS, as_json, clean
from worker.executors.turn import JsonObject, MemberRun, StepResult, Turn, text_of

_STATUS: Final = {
    AgnoStatus.completed: RunStatus.COMPLETED,
    AgnoStatus.error: RunStatus.ERROR,
    AgnoStatus.paused: RunStatus.PAUSED,
}
_OF_THE_TURN: Final = ("current_user_id", "current_session_id", "current_run_id")
"""What Agno adds to the state for its models to see; its own sessions are stored without."""
_NOT_STORED: Final = ("session_state", "queue_attempt")
"""The state is the session's: with each run it would be stored once more."""

_log = structlog.get_logger()


def leave(turn: Turn, run: Any | None, held: SessionInTurn, failures: Sequence[Exception]) -> None:
    """Give the turn what its run has left; `run` is None where it was cut off, or raised."""
    data = held.data or held.session.session_data or {}
    state = data.get("session_state")
    if isinstance(state, dict):
        turn.session_state = {key: value for key, value in state.items() if key not in _OF_THE_TURN}
    turn.session_name = data.get("session_name") or turn.session_name
    at_hand = {one.run_id: one for one in held.session.runs or []}
    run = run or at_hand.get(turn.run_id) or held.runs.get(turn.run_id)
    known = {str(past.get("run_id")) for past in turn.whole_history} | {past.run_id for past in turn.history}
    members = [one for one in at_hand.values() if one.run_id not in known and one.parent_run_id is not None]
    members += _parts(run) if run is not None else []
    turn.member_runs[:] = _member_runs(members, turn.run_id, held, failures, {turn.run_id})
    if run is not None:
        turn.details = details_of(held.runs.get(turn.run_id, run))
    if isinstance(run, WorkflowRunOutput):
        turn.step_results[:] = _step_results(run.step_results, failures)


def _member_runs(
    runs: Iterable[Any], parent_run_id: str, held: SessionInTurn, failures: Sequence[Exception], seen: set[str]
) -> list[MemberRun]:
    """Return runs as members', each after those below it."""
    found: list[MemberRun] = []
    for run in runs:
        if run.run_id is None or run.run_id in seen:
            continue
        seen.add(run.run_id)
        found += _member_runs(_parts(run), run.run_id, held, failures, seen)
        found.append(_member_run(run, parent_run_id, held, failures))
    return found


def _parts(run: Any) -> list[Any]:
    """Return the runs that a run is made of: of a team its members', of a workflow its steps'."""
    return list(getattr(run, "member_responses", None) or getattr(run, "step_executor_runs", None) or [])


def _member_run(run: Any, parent_run_id: str, held: SessionInTurn, failures: Sequence[Exception]) -> MemberRun:
    member = _target_of(run)
    status = _STATUS.get(run.status, RunStatus.CANCELLED)
    failed = status is RunStatus.ERROR
    stored = held.runs.get(run.run_id)
    content = None
    if not failed:  # else it is the text of its exception
        try:
            content = as_json(without_texts(run.content, failures), what=f"the answer of {member}")
        except ModelFailed:
            status = RunStatus.ERROR
    made = MemberRun(
        run_id=run.run_id,
        parent_run_id=run.parent_run_id or parent_run_id,
        member=member,
        name=_name_of(run) or member.id,
        input=_input_of(run),
        created_at=run.created_at,
        content=content,
        status=status,
        error=failure_of_run(str(member), run, failures) if status is RunStatus.ERROR else None,
    )
    made.details = details_of(run if stored is None else stored)
    made.details.pop("member_responses", None)  # each is a run of its own
    return made


def _target_of(run: Any) -> Target:
    kind = SessionType.AGENT
    if isinstance(run, TeamRunOutput):
        kind = SessionType.TEAM
    elif isinstance(run, WorkflowRunOutput):
        kind = SessionType.WORKFLOW
    try:
        return Target(type=kind, id=getattr(run, f"{kind.value}_id") or _name_of(run) or kind.value)
    except ValidationError:  # an id that is too long, or has control characters
        return Target(type=kind, id=kind.value)


def _name_of(run: Any) -> str | None:
    names = (getattr(run, f"{kind.value}_name", None) for kind in SessionType)
    return next((str(name) for name in names if name), None)


def _input_of(run: Any) -> str:
    """Return what a member was asked: its task, the last of the messages where it was given its history."""
    asked = getattr(run.input, "input_content", run.input)
    if isinstance(asked, list) and asked:
        asked = getattr(asked[-1], "content", asked[-1])
    try:
        return text_of(clean(asked))
    except ValueError:
        return str(asked)


def details_of(run: Any) -> JsonObject:
    """Return a run as Agno stores it; nothing where it can't be told in JSON."""
    try:
        told = run.to_dict()
        if run.status is AgnoStatus.error:
            told.pop("events", None)  # the text of the exception
        cleaned = clean({k: v for k, v in told.items() if k not in _NOT_STORED}, levels=MAX_LEVELS, most=None)
    except Exception as error:  # noqa: BLE001 - tools and models of users' leave anything in a run
        _log.warning("agno_run_not_described", reason=type(error).__name__, consequence="less of it is stored")
        return {}
    assert isinstance(cleaned, dict)  # noqa: S101 - for the type checker: an object stays one
    return cleaned


def _step_results(outputs: Iterable[Any], failures: Sequence[Exception]) -> Iterator[StepResult]:
    for output in outputs:
        if isinstance(output, list):
            yield from _step_results(output, failures)
            continue
        succeeded, content = output.success is not False, None
        try:
            content = as_json(without_texts(output.content, failures), what=f"step {output.step_name!r}")
        except TurnFailed:
            succeeded = False
        yield StepResult(
            name=str(output.step_name or ""),
            kind=str(output.executor_type or getattr(output.step_type, "value", output.step_type) or ""),
            executor=str(output.executor_name or ""),
            status=RunStatus.COMPLETED if succeeded else RunStatus.ERROR,
            content=content,
            run_id=output.step_run_id,
        )
