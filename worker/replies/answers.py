"""Answers: the reply to a request as a value, and as the bytes that are stored and published. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import ErrorCode
from schemas.ids import Target
from schemas.replies import MemberResponse, RunError, RunMetrics, RunReply, RunStatus
from schemas.requests import RunRequest
from worker.executors.attempt import Outcome
from worker.executors.json_values import clean
from worker.executors.turn import Turn


@dataclass(frozen=True, slots=True)
class Timing:
    """When a turn was taken: unix seconds."""

    queued: float
    started: float
    ended: float


def rejected(
    request: RunRequest,
    code: ErrorCode,
    message: str,
    *,
    now: float,
    retryable: bool = False,
    status: RunStatus = RunStatus.REJECTED,
) -> RunReply:
    """Return the reply to a request that is not executed."""
    return RunReply(
        **_address(request),
        status=status,
        error=RunError(code=code, message=_plain(message), retryable=retryable),
        created_at=int(now),
        completed_at=int(now),
    )


def unreadable(known: Mapping[str, str], code: ErrorCode, message: str, *, now: float) -> RunReply:
    """Return the reply to what is no request; `known` has the ids that it had, by the reply's fields."""
    return RunReply(
        **{"run_id": None, "session_id": None, "session_type": None} | dict(known),
        status=RunStatus.REJECTED,
        error=RunError(code=code, message=_plain(message)),
        created_at=int(now),
        completed_at=int(now),
    )


def of_deleted(run_id: str, session_id: str, user_id: str | None, target: Target, *, at: int) -> RunReply:
    """Return what answers a run of a session that was deleted since, without anything of it. `at`: unix seconds."""
    message = "the session was deleted, and the run's answer with it"
    return RunReply(
        **_ids(run_id, session_id, target, user_id),
        status=RunStatus.ERROR,
        error=RunError(code=ErrorCode.SESSION_DELETED, message=message),
        created_at=at,
        completed_at=at,
    )


def finished(request: RunRequest, turn: Turn, outcome: Outcome, *, number: int | None, timing: Timing) -> RunReply:
    """Return the reply to a request whose turn was taken, well or not."""
    error = outcome.error
    usage = turn.usage
    return RunReply(
        **_address(request),
        status=outcome.status,
        content=outcome.content,
        member_responses=_responses(turn),
        approvals=[] if outcome.pause is None else [one.approval for one in outcome.pause.pending],
        turn=number,
        attempt=turn.attempt,
        metrics=RunMetrics(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
            model_requests=usage.model_requests,
            tool_calls=usage.tool_calls,
            duration=round(max(timing.ended - timing.started, 0.0), 6),
            queue_time=round(max(timing.started - timing.queued, 0.0), 6),
        ),
        error=None
        if error is None
        else RunError(code=error.code, message=_plain(error.message), retryable=error.is_retryable),
        created_at=int(timing.started),
        completed_at=int(timing.ended),
    )


def answered_with(reply: RunReply, request: RunRequest) -> RunReply:
    """Return the reply to a request that joined the turn of which this is the reply: what it took is said there."""
    return reply.model_copy(
        update={"run_id": request.run_id, "answered_by": reply.run_id, "metrics": RunMetrics()},
    )


def _responses(turn: Turn) -> list[MemberResponse]:
    """Return what members answered; of a workflow, what its steps ended with."""
    if turn.step_results:
        return [
            MemberResponse(member_id=step.name, content=clean(step.content), status=step.status)
            for step in turn.step_results
        ]
    return [
        MemberResponse(member_id=member.member.id, content=clean(member.content), status=member.status)
        for member in turn.member_runs
    ]


def shortened(reply: RunReply, *, largest_bytes: int, schema: str) -> RunReply:
    """Return a reply as it is published where it would be larger than that: without what is only stored then.

    The answer goes first, then the members' answers, at last their list. A failure stays what it was.
    """
    size_bytes = len(body_of(reply))
    if size_bytes <= largest_bytes:
        return reply
    run_id = reply.answered_by or reply.run_id
    where = f"it is stored in {schema}.sessions: session {reply.session_id}, run {run_id}"
    error = reply.error
    if error is None:
        message = f"the reply would have {size_bytes} bytes, more than the {largest_bytes} that can be sent; {where}"
        error = RunError(code=ErrorCode.REPLY_TOO_LARGE, message=_plain(message))
    elif error.code is not ErrorCode.REPLY_TOO_LARGE:
        message = f"{error.message} (the reply has not all that there was; {where})"
        error = error.model_copy(update={"message": message})
    without_answer = reply.model_copy(update={"content": None, "error": error})
    named = [response.model_copy(update={"content": None}) for response in reply.member_responses]
    asked = [approval.model_copy(update={"arguments": None, "metadata": None}) for approval in reply.approvals]
    shorter = (
        without_answer,
        without_answer.model_copy(update={"member_responses": named}),
        without_answer.model_copy(update={"member_responses": []}),
        without_answer.model_copy(update={"member_responses": [], "approvals": asked}),
    )
    return next((one for one in shorter if len(body_of(one)) <= largest_bytes), shorter[-1])


def body_of(reply: RunReply) -> bytes:
    """Return the reply as it is stored and published."""
    return reply.model_dump_json().encode()


def _address(request: RunRequest) -> dict[str, Any]:
    return _ids(request.run_id, request.session_id, request.target, request.user_id)


def _ids(run_id: str, session_id: str, target: Target, user_id: str | None) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "session_id": session_id,
        "session_type": target.type.value,
        f"{target.type.value}_id": target.id,
        "user_id": user_id,
    }


def _plain(message: str) -> str:
    cleaned = clean(message)
    return cleaned if isinstance(cleaned, str) else ""
