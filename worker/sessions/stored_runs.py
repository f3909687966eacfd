"""Runs and sessions in the layout that Agno 3 reads and writes. Pure: values in, JSON objects out.

The keys are Agno's; those that it does not know (`error`, `turn`, `attempt`, `answers`, `continues`, `decisions`,
`approvals`) it ignores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from schemas.ids import SessionType, Target
from schemas.replies import RunReply, RunStatus
from schemas.requests import Input, RunRequest
from worker.executors.json_values import MAX_LEVELS, clean
from worker.executors.turn import MemberRun, PastRun, StepResult, text_of

JsonObject = dict[str, Any]

_OWN_LEVELS: Final = 5
"""How many levels a stored run has around what came from outside."""

_INPUT: Final = TypeAdapter[Input](Input)


def past_run(run_data: Any) -> PastRun:  # noqa: ANN401 - whatever another program stored
    """Read a stored run, ours or Agno's, as history."""
    run = run_data if isinstance(run_data, dict) else {}
    given = run.get("input")
    asked = given.get("input_content") if isinstance(given, dict) else given
    created_at = run.get("created_at")
    return PastRun(
        run_id=str(run.get("run_id") or ""),
        input=_input_text(asked),
        content=run.get("content"),
        created_at=created_at if isinstance(created_at, int) else 0,
        parts=_parts(asked),
    )


def _parts(asked: Any) -> Input | None:  # noqa: ANN401 - text, parts, or what another program stored
    if not isinstance(asked, list):
        return None
    try:
        return _INPUT.validate_python(asked)
    except ValidationError:
        return None


def _input_text(asked: Any) -> str:  # noqa: ANN401 - text, parts, or what another program stored
    if isinstance(asked, list) and all(isinstance(part, dict) for part in asked):
        # Parts of ours have text; Agno stores lists of messages as well, which have content.
        texts = (part.get("text", part.get("content")) for part in asked if part.get("role", "user") == "user")
        return "\n".join(text_of(text) for text in texts if text)
    return text_of(asked)


@dataclass(frozen=True, slots=True)
class FinishedTurn:
    """What a turn left behind, beside its reply."""

    name: str
    model_name: str | None
    session_state: dict[str, JsonValue] | None
    """The state to store; None leaves the stored one as it is."""
    session_name: str | None = None
    """The name to store; None leaves the stored one as it is."""
    messages: tuple[JsonObject, ...] = ()
    member_runs: tuple[MemberRun, ...] = ()
    step_results: tuple[StepResult, ...] = ()
    details: JsonObject = field(default_factory=dict)
    """What else is stored of the run; see Turn.details."""


def run_data(request: RunRequest, reply: RunReply, turn: FinishedTurn, *, answers: Sequence[str] = ()) -> JsonObject:
    """Return the stored form of a request's own run; `answers` are the runs of the requests that joined it.

    A team's run must not have the key agent_id, not even as null: Agno would read it as an agent's.
    """
    stored = _run(
        run_id=request.run_id,
        session_id=request.session_id,
        user_id=request.user_id,
        target=request.target,
        name=turn.name,
        asked=_input_content(request.input),
        content=reply.content,
        status=reply.status,
        created_at=reply.created_at,
        messages=turn.messages,
    )
    stored["metrics"] = reply.metrics.model_dump(include={"input_tokens", "output_tokens", "total_tokens", "duration"})
    stored["turn"] = reply.turn
    stored["attempt"] = reply.attempt
    if request.target.type is SessionType.WORKFLOW:
        # What Agno reads of a workflow's run has another shape: without "steps" it fails.
        stored["input"] = stored["input"]["input_content"]
        stored["metrics"]["steps"] = {}
        stored["step_results"] = [_step_output(result) for result in turn.step_results]
    else:
        stored["member_responses"] = []
    if answers:
        stored["answers"] = list(answers)
    if request.continues is not None:
        stored["continues"] = request.continues
        stored["decisions"] = [decision.model_dump(mode="json") for decision in request.decisions]
    if reply.approvals:
        stored["approvals"] = [approval.model_dump(mode="json") for approval in reply.approvals]
    if request.metadata:
        stored["metadata"] = request.metadata
    if reply.error is not None:
        stored["error"] = reply.error.model_dump(mode="json")
    return _cleaned(_with_details(stored, turn.details))


def member_run_data(request: RunRequest, member: MemberRun) -> JsonObject:
    """Return the stored form of a member's run, below the run it belongs to."""
    stored = _run(
        run_id=member.run_id,
        session_id=request.session_id,
        user_id=request.user_id,
        target=member.member,
        name=member.name,
        asked=_input_content(member.input),
        content=member.content,
        status=member.status,
        created_at=member.created_at,
        messages=tuple(member.messages),
    )
    stored["parent_run_id"] = member.parent_run_id
    if member.error is not None:
        stored["error"] = {"code": member.error.code.value, "message": member.error.message}
    return _cleaned(_with_details(stored, member.details))


_DETAILED: Final = ("input", "content_type", "messages", "member_responses", "step_results")
"""What an executor that leaves details knows better: with media, types and tool calls."""


def _with_details(stored: JsonObject, details: JsonObject) -> JsonObject:
    """Lay what is known of a run over the details that its executor left of it."""
    if not details:
        return stored
    better = {name: details[name] for name in _DETAILED if details.get(name)}
    for name in ("metrics", "metadata"):
        if isinstance(given := details.get(name), dict):
            known = {key: value for key, value in stored.get(name, {}).items() if value != {}}
            better[name] = given | known
    return details | stored | better


def _step_output(result: StepResult) -> JsonObject:
    return {
        "step_name": result.name,
        "step_type": "Step",
        "executor_type": result.kind,
        "executor_name": result.executor,
        "step_run_id": result.run_id,
        "content": result.content,
        "success": result.status is RunStatus.COMPLETED,
    }


def target_data(target: Target, name: str, model_name: str | None) -> JsonObject:
    """Return what the session row says of its team, agent or workflow, by the column it belongs to."""
    described: JsonObject = {"name": name, f"{target.type.value}_id": target.id}
    if model_name is not None:
        provider, _, model = model_name.partition(":")
        described["model"] = {"id": model, "name": model, "provider": provider or None}
    return {f"{target.type.value}_data": _cleaned(described)}


def _run(
    *,
    run_id: str,
    session_id: str,
    user_id: str | None,
    target: Target,
    name: str,
    asked: JsonValue,
    content: JsonValue,
    status: RunStatus,
    created_at: int,
    messages: tuple[JsonObject, ...],
) -> JsonObject:
    kind = target.type.value
    return {
        "run_id": run_id,
        f"{kind}_id": target.id,
        f"{kind}_name": name,
        "session_id": session_id,
        "user_id": user_id,
        "input": {"input_content": asked},
        "content": content,
        "content_type": "str" if content is None or isinstance(content, str) else "json",
        "status": status.value,
        "created_at": created_at,
        "messages": _messages(asked, content, messages),
    }


def _messages(asked: JsonValue, content: JsonValue, said: tuple[JsonObject, ...]) -> list[JsonObject]:
    """Return a run's messages from what was asked to its answer: Agno's history and titles are made of them.

    What its model was told beside that, such as the members' answers, is not what the user said.
    """
    messages = [{"role": "user", "content": _input_text(asked)}, *said[1:]]
    answer = text_of(content)
    last = messages[-1]
    if content is not None and (last.get("role"), last.get("content")) != ("assistant", answer):
        messages.append({"role": "assistant", "content": answer})
    return messages


def _input_content(given: Input) -> JsonValue:
    if isinstance(given, str):
        return given
    return [part.model_dump(mode="json") for part in given]


def _cleaned(stored: JsonObject) -> JsonObject:
    cleaned = clean(stored, levels=MAX_LEVELS + _OWN_LEVELS, most=None)
    assert isinstance(cleaned, dict)  # noqa: S101 - for the type checker: an object stays one
    return cleaned
