"""What to do with a request once its session is claimed: pure decisions, without I/O and without a clock."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import ErrorCode
from schemas.ids import Target
from schemas.requests import OnBusy, RunRequest
from worker.executors.json_values import MAX_STATE_BYTES, json_text
from worker.sessions.claim import Claim, Receipt, SessionRow


@dataclass(frozen=True, slots=True)
class Replay:
    """The run is finished, or was refused for good: its stored reply is the answer."""

    reply: bytes


@dataclass(frozen=True, slots=True)
class Execute:
    """The turn is taken."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request is not executed."""

    code: ErrorCode
    message: str
    retryable: bool = False
    stored: bool = True
    """Stored before it is published: it depends on the moment (sessions, teams and clocks change), and who asks
    again is answered the same. A run_id that somebody else's run has can't be stored twice."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The run was cancelled before it was started: it never is."""


Decision = Replay | Execute | Refuse | Cancel


def decide(
    request: RunRequest,
    claim: Claim,
    *,
    target_known: bool,
    forbidden_property: str | None = None,
    busy: bool = False,
) -> Decision:
    """Decide about a claimed request. What was answered before is answered again, whatever has changed since.

    `busy`: when it came, an earlier request of its session, another one, was unfinished.
    """
    if claim.receipt is not None and _same(request, claim.receipt):
        return Replay(claim.receipt.reply)
    return (
        _foreign(request, claim, forbidden_property)
        or _cancelled(claim)
        or _refusal(request, claim, target_known=target_known, busy=busy)
        or Execute()
    )


def _foreign(request: RunRequest, claim: Claim, forbidden_property: str | None) -> Refuse | None:
    """Return why the request is nobody's who may ask here: before anything else is told."""
    if claim.receipt is not None or claim.run_exists:
        # Nothing of the other run is shown, not even whose it is.
        message = "the run_id was used before, for something different"
        return Refuse(ErrorCode.RUN_ID_CONFLICT, message, stored=False)
    if forbidden_property is not None:
        message = f"the AMQP property {forbidden_property} must not be set on a request"
        return Refuse(ErrorCode.UNSUPPORTED_PROPERTY, message)
    return None if claim.session is None else _not_allowed(request, claim.session)


def _cancelled(claim: Claim) -> Cancel | None:
    # One that was started before is a run, and is stored as one.
    return Cancel() if claim.cancelled and not claim.attempts else None


def _refusal(request: RunRequest, claim: Claim, *, target_known: bool, busy: bool) -> Refuse | None:
    """Return why the request is not executed: the first reason that holds."""
    if not target_known:
        target = request.target
        return Refuse(ErrorCode.UNKNOWN_TARGET, f"no {target.type.value} {target.id!r} is named in TEAMTURN_TEAMS")
    return (
        _not_continued(request, claim)
        or _paused(request, claim)
        or too_large(request, claim.session)
        or _too_late(request, claim)
        or _too_busy(request, claim, busy=busy)
    )


def _same(request: RunRequest, receipt: Receipt) -> bool:
    asked = (request.session_id, request.user_id, request.target, request.fingerprint)
    return asked == (receipt.session_id, receipt.user_id, receipt.target, receipt.fingerprint)


def _not_allowed(request: RunRequest, session: SessionRow) -> Refuse | None:
    if session.user_id != request.user_id:
        return Refuse(ErrorCode.SESSION_FORBIDDEN, "the session belongs to somebody else")
    if not _is_target(session, request.target):
        return Refuse(
            ErrorCode.SESSION_TARGET_MISMATCH,
            f"the session belongs to {session.session_type} {session.target_id!r}, not to "
            f"{request.target.type.value} {request.target.id!r}",
        )
    return None


def _is_target(session: SessionRow, target: Target) -> bool:
    return (session.session_type, session.target_id) == (target.type.value, target.id)


def _not_continued(request: RunRequest, claim: Claim) -> Refuse | None:
    """Return why a request can't go on with the run that it continues."""
    if request.continues is None:
        return None
    found = claim.pauses
    if found is None or found.expires_at is None or claim.session is None:
        message = f"the session has no paused run {request.continues!r}: it never paused, or was continued"
        return Refuse(ErrorCode.RUN_NOT_PAUSED, message)
    if found.pause is None or (found.expires_at <= claim.database_time and not claim.attempts):
        return Refuse(ErrorCode.PAUSE_EXPIRED, f"the run {request.continues!r} has waited too long to be continued")
    if unknown := found.pause.unknown(request.decisions):
        message = f"the run {request.continues!r} does not wait for the call {unknown[0]!r}"
        return Refuse(ErrorCode.DECISION_UNKNOWN, message)
    return None


def _paused(request: RunRequest, claim: Claim) -> Refuse | None:
    # One that was started before has been admitted.
    waits = claim.pauses is not None and claim.pauses.session_paused
    if request.continues is not None or not waits or claim.attempts:
        return None
    message = "a run of the session waits for somebody's decision"
    return Refuse(ErrorCode.SESSION_PAUSED, message, retryable=True)


def too_large(request: RunRequest, session: SessionRow | None) -> Refuse | None:
    """Return a refusal where what the request adds would make the session grow without end, over many requests."""
    for what, stored, added in (
        ("state", session.session_state if session else {}, request.session_state),
        ("metadata", session.metadata if session else {}, request.metadata),
    ):
        if added and len(json_text(stored | added)) > MAX_STATE_BYTES:
            message = f"with the request's, the session's {what} would be larger than {MAX_STATE_BYTES} bytes"
            return Refuse(ErrorCode.SESSION_TOO_LARGE, message)
    return None


def _too_late(request: RunRequest, claim: Claim) -> Refuse | None:
    # One that was started before its deadline is late as a running turn is: executed, it ends at once, as ERROR.
    if request.deadline is None or claim.database_time < request.deadline or claim.attempts:
        return None
    message = "the deadline had passed when the turn could have been started"
    return Refuse(ErrorCode.DEADLINE_EXCEEDED, message)


def _too_busy(request: RunRequest, claim: Claim, *, busy: bool) -> Refuse | None:
    # One that was started before has been admitted.
    if request.on_busy is not OnBusy.REJECT or not busy or claim.attempts:
        return None
    message = "an earlier request of the session is unfinished"
    return Refuse(ErrorCode.SESSION_BUSY, message, retryable=True)
