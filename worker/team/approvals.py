"""Tool calls that need approval (pydantic-ai's `requires_approval`, `ApprovalRequired`): decided, or waited for.

An agent's run comes to them once all other calls of the same answer are made. Where one was decided about, since the
turn goes on with a paused one, it is made or denied; while one is not, the run ends as RunPaused. A decision is about a
call with its arguments: what a model asks for under the same id in its place is asked about again. A member's run that
pauses defers the leader's call that it belongs to, so that what goes on beside it is not cut off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import CallDeferred, RunContext
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied

from schemas.ids import MAX_ID_BYTES, Id
from schemas.replies import Approval
from schemas.requests import Decision
from worker.errors import ExecutorFailed
from worker.executors.json_values import cleaned_json, json_text
from worker.executors.pauses import Pending, RunPaused
from worker.executors.turn import Turn
from worker.team.durability import step_of_call

_T = TypeVar("_T")

_MEMBERS: Final = "teamturn_pending"
"""In the metadata of a deferred call: what the members wait for that it has given a task."""
_LONGEST_CALL_ID_BYTES: Final = MAX_ID_BYTES - 5
"""Those with the same id are told apart by `#2`, …."""

_ID: Final = TypeAdapter[str](Id)


async def or_deferred(delegated: Awaitable[_T]) -> _T:
    """Await what a call of the leader's has members do. Raises CallDeferred if they pause."""
    try:
        return await delegated
    except RunPaused as paused:
        raise CallDeferred(metadata={_MEMBERS: paused.pending}) from None


def decided(context: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
    """Return what was decided about calls that are deferred. Raises RunPaused while one is not."""
    turn: Turn = context.deps
    pending: list[Pending] = []
    for call in requests.calls:
        members = requests.metadata.get(call.tool_call_id, {}).get(_MEMBERS)
        if members is None:
            raise ExecutorFailed(f"the tool {call.tool_name!r} is deferred; only approvals can be waited for")
        pending += members
    results = DeferredToolResults()
    for call in requests.approvals:
        approval = _approval(call, requests.metadata.get(call.tool_call_id))
        name = turn.steps.name_of_approval(call.tool_call_id, json_text([call.tool_name, approval.arguments]))
        decision = None if turn.origin is None else turn.origin.decisions.get(name)
        if decision is None:
            pending.append(Pending(name=name, approval=approval))
        elif turn.steps.is_done(step_of_call(call.tool_name, call.tool_call_id)):
            # A run that failed since has made it: it can't be denied any more, and the model is told what it came to.
            results.approvals[call.tool_call_id] = ToolApproved()
        else:
            results.approvals[call.tool_call_id] = _result(decision)
    if pending:
        if not turn.steps.journal.kept:
            raise ExecutorFailed("a tool call needs approval, and with journal=False a run can't be continued")
        raise RunPaused(pending)
    return results


def _result(decision: Decision) -> ToolApproved | ToolDenied:
    if decision.approved:
        return ToolApproved()
    return ToolDenied() if decision.message is None else ToolDenied(decision.message)


def _approval(call: ToolCallPart, metadata: dict[str, Any] | None) -> Approval:
    return Approval(
        tool_call_id=_public_id(call.tool_call_id),
        tool=call.tool_name,
        arguments=cleaned_json(call.args_as_dict()) if call.args else {},
        metadata=None if metadata is None else _as_object(cleaned_json(metadata)),
    )


def _as_object(found: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return found if isinstance(found, dict) else {}


def _public_id(call_id: str) -> str:
    """Return what a decision can name a call by: its id, where that is one."""
    if len(call_id.encode("utf-8", "replace")) <= _LONGEST_CALL_ID_BYTES:
        try:
            return _ID.validate_python(call_id)
        except ValidationError:
            pass
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
