"""What can go wrong, one class a case.

`StartupError` is a mistake that its reader can mend: the program ends with its sentence and exit code 2.
`RequestRefused` and `TurnFailed` carry the code that goes into the reply or the dead letter.
`ClientError` is what `RunClient` raises.
The others never leave the worker: they say what the turn does next.
"""

from __future__ import annotations

from typing import ClassVar

from schemas.errors import ErrorCode
from schemas.requests import RunRequest


class StartupError(Exception):
    """The program can't start as it is set up. The message is one line: what is wrong, and what to do."""


class RequestRefused(Exception):
    """A request that will not be executed, whoever sends it again."""

    def __init__(self, code: ErrorCode, message: str, *, request: RunRequest | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request = request
        """The request, where it is one: a reply to it has an address in any case."""


class TurnFailed(Exception):
    """A turn that ended without an answer. The message goes to the user: nothing internal, no secrets."""

    code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.is_retryable = type(self).retryable if retryable is None else retryable


class TurnTimedOut(TurnFailed):
    """The turn ran longer than TEAMTURN_TURN_TIMEOUT, or than the team's own time-out."""

    code = ErrorCode.TURN_TIMEOUT
    retryable = True


class DeadlineExceeded(TurnFailed):
    """The request's deadline passed while the turn ran."""

    code = ErrorCode.DEADLINE_EXCEEDED


class ExecutorFailed(TurnFailed):
    """The team's or executor's own code raised an error."""

    code = ErrorCode.EXECUTOR_FAILED


class ToolFailed(TurnFailed):
    """A tool of the team raised an error."""

    code = ErrorCode.TOOL_FAILED


class InvalidResult(TurnFailed):
    """An executor's result, step or session state is not JSON."""

    code = ErrorCode.INVALID_RESULT


class ModelFailed(TurnFailed):
    """The model's provider answered with an error, or not at all."""

    code = ErrorCode.MODEL_ERROR


class InvalidOutput(TurnFailed):
    """The model kept giving output or tool calls that don't validate."""

    code = ErrorCode.INVALID_OUTPUT


class UsageLimitReached(TurnFailed):
    """The run reached its limit of requests, tokens, tool calls or cost, or that of what it may record."""

    code = ErrorCode.USAGE_LIMIT_EXCEEDED


class StepUncertain(TurnFailed):
    """A call that must not be made twice was started, and its worker died before it was recorded."""

    code = ErrorCode.STEP_UNCERTAIN


class AttemptsExhausted(TurnFailed):
    """The run was started too often without a step that was recorded: it is taken for what kills its workers."""

    code = ErrorCode.ATTEMPTS_EXHAUSTED


class SessionDeleted(TurnFailed):
    """The session was deleted while the turn ran."""

    code = ErrorCode.SESSION_DELETED


class RunCancelled(TurnFailed):
    """The run's user does not want it any more."""

    code = ErrorCode.CANCELLED


class BrokerUnavailable(Exception):
    """RabbitMQ can't be reached, or the connection or channel was lost."""


class StoreUnavailable(Exception):
    """Postgres can't do it now: not reachable, out of locks or space, or waiting too long. Worth trying again."""


class StoreFull(StoreUnavailable):
    """Postgres has no room on its disk."""


class LaneLost(StoreUnavailable):
    """The lane's connection is gone, and with it every lock of its sessions."""


class StatementRefused(Exception):
    """Postgres refuses a statement for what is in it; trying again would not help."""


class ClaimUnreadable(StatementRefused):
    """What a claim has found can't be read here. The session's lock is held."""


class SummaryRejected(Exception):
    """The model's provider won't take the runs that are to be summed up: they are too long for it, say."""

    def __init__(self, runs: int, reason: str) -> None:
        super().__init__(reason)
        self.runs = runs
        """How many it was given."""


class SessionBusyElsewhere(Exception):
    """Another worker holds the session's lock."""


class ClaimOutdated(Exception):
    """Somebody else wrote the session, or took the run_id, since the claim: claim again."""


class ClientError(Exception):
    """What RunClient could not do, as a sentence for people. Each kind is a class of its own."""


class NoRoute(ClientError):
    """No queue takes the prefix's requests: no worker was ever started with it, nor `teamturn topology apply`."""


class PublishNacked(ClientError):
    """RabbitMQ refused the request for ten seconds (basic.nack): a queue of a limited length is full, say."""


class RequestTooLarge(ClientError):
    """The request is larger than RabbitMQ is set up to take."""


class ClientTimedOut(ClientError, TimeoutError):
    """It took longer than the caller's time limit. A request that was published stays so, and is executed."""


class ClientClosed(ClientError):
    """The client is not connected: its block has ended, or did not begin. A request that was published stays so."""


class UnknownRun(ClientError):
    """This client has no reply of that run_id to wait for: ask with the request itself."""


class ReplyUnreadable(ClientError):
    """The reply is not one that this version can read: the workers' is another one."""
