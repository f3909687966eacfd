"""The codes that a reply or a dead letter can carry: one name each, and what it means."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """Why a request was refused, or a run failed. The values are part of the contract; none is ever reused."""

    # What could not be executed. It goes to {prefix}.dead.
    MALFORMED_REQUEST = "malformed_request"
    """The body is not UTF-8, not JSON, or nested too deeply to be read."""
    INVALID_REQUEST = "invalid_request"
    """A field is unknown, missing or of the wrong type, or not exactly one target is named."""
    REQUEST_TOO_LARGE = "request_too_large"
    """The body is larger than TEAMTURN_MAX_REQUEST_BYTES."""
    MISSING_RUN_ID = "missing_run_id"
    """Neither the body nor the AMQP message_id names the run."""
    MISROUTED = "misrouted"
    """The request was passed on to its partition once and still arrived at another: the bindings are wrong."""
    INTERNAL_ERROR = "internal_error"
    """The worker failed on the request in a way that was not foreseen; its log says how."""

    # A request that is refused; REJECTED, never executed.
    UNSUPPORTED_PROPERTY = "unsupported_property"
    """`expiration` or a priority above 0 is set: the broker would drop or reorder the request unseen."""
    NOT_SUPPORTED = "not_supported"
    """A documented field asks for what this version can't do yet."""
    UNKNOWN_TARGET = "unknown_target"
    """No team, agent or workflow of that id is named in TEAMTURN_TEAMS."""
    SESSION_FORBIDDEN = "session_forbidden"
    """The session belongs to somebody else."""
    SESSION_TARGET_MISMATCH = "session_target_mismatch"
    """The session began with another team, agent or workflow."""
    RUN_ID_CONFLICT = "run_id_conflict"
    """The run_id was used before, for something different."""
    SESSION_BUSY = "session_busy"
    """An earlier request of the session was unfinished, and this one asked not to wait: `on_busy` is `reject`."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The request's deadline passed: before the start (REJECTED) or while the turn ran (ERROR)."""
    SESSION_PAUSED = "session_paused"
    """A run of the session waits for a human's decision, and its team takes no other request meanwhile."""
    RUN_NOT_PAUSED = "run_not_paused"
    """The session has no paused run of the id that the request `continues`: there never was one, it was continued, or
    it expired more than a month ago."""
    PAUSE_EXPIRED = "pause_expired"
    """The run that the request `continues` has waited too long: its team's `pause_timeout` has passed."""
    DECISION_UNKNOWN = "decision_unknown"
    """A decision names a call that the paused run does not wait for."""
    SESSION_TOO_LARGE = "session_too_large"
    """With the request's `session_state` or `metadata`, the session's would be larger than is kept."""

    # A request that is executed all the same; in the header x-teamturn-code of its reply.
    REPLY_TO_FORBIDDEN = "reply_to_forbidden"
    """The queue named in `reply_to` is not one that a reply may go to: the reply went to the results."""

    # A run that has an answer; its status is COMPLETED, and the answer is stored.
    REPLY_TOO_LARGE = "reply_too_large"
    """The reply would be larger than 15 MiB, or than RabbitMQ is set to take: its `content` is null, and so is that of
    each of its `member_responses` where need be. The message says where the answer is stored."""

    # A run that its user cancelled; its status is CANCELLED.
    CANCELLED = "cancelled"
    """It was cancelled: while it ran, and is stored with what it had, or before it was started."""

    # A run that failed; ERROR, stored.
    TURN_TIMEOUT = "turn_timeout"
    """The turn ran longer than TEAMTURN_TURN_TIMEOUT, or than the team's own time-out."""
    EXECUTOR_FAILED = "executor_failed"
    """The team's or executor's own code raised an error."""
    TOOL_FAILED = "tool_failed"
    """A tool of the team raised an error."""
    INVALID_RESULT = "invalid_result"
    """An executor returned, or left in the session state, what JSON can't hold."""
    MODEL_ERROR = "model_error"
    """The model's provider answered with an error or not at all."""
    INVALID_OUTPUT = "invalid_output"
    """The model kept giving output or tool calls that don't validate."""
    USAGE_LIMIT_EXCEEDED = "usage_limit_exceeded"
    """The run reached its limit of requests, tokens, tool calls or cost, or that of steps that it may record."""
    STEP_UNCERTAIN = "step_uncertain"
    """A call that must not be made twice was started by a worker that died before it was recorded: nobody knows whether
    it took effect."""
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    """The run was started TEAMTURN_MAX_ATTEMPTS times, and its worker died each time before a step was recorded. The
    request is in {prefix}.dead as well."""
    SESSION_DELETED = "session_deleted"
    """The session was deleted while the turn ran; it stays deleted. Or it was deleted since, and its answers with it: a
    request that is delivered again gets this."""


def read_code(value: object) -> object:
    """Return the code that a reply has; one that a later version has added is an ErrorCode of that value as well.

    Workers are upgraded before their producers: these are told what happened, in a word that they do not know yet.
    """
    if not isinstance(value, str) or value in _VALUES:
        return value
    later = str.__new__(ErrorCode, value)
    later._name_, later._value_ = value.upper(), value
    return later


_VALUES: Final = frozenset(code.value for code in ErrorCode)

DEAD_LETTERED: Final = frozenset(
    {
        ErrorCode.MALFORMED_REQUEST,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.REQUEST_TOO_LARGE,
        ErrorCode.MISSING_RUN_ID,
        ErrorCode.MISROUTED,
        ErrorCode.INTERNAL_ERROR,
    }
)
"""The codes of what goes to the dead-letter queue: nothing is stored of it, and nothing is lost."""
