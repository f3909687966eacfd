"""What pydantic-ai raises, as the codes that the reply carries; and what is worth another try."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from pydantic import JsonValue
from pydantic_ai.exceptions import (
    AgentRunError,
    ConcurrencyLimitExceeded,
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)

from worker.errors import InvalidOutput, ModelFailed, TurnFailed, UsageLimitReached

_PASSING: Final = (
    ModelRateLimitError,
    ModelUnavailableError,
    ModelServerError,
    ModelConnectionError,
    ModelRequestTimeout,
)
UNSUITABLE: Final = (UserError, NotImplementedError, AssertionError)
"""What a model raises that can't be given the request: a kind of input that it does not take, a setting."""
UNREADABLE: Final = (UnexpectedModelBehavior, TypeError, AttributeError, LookupError, ValueError)
"""What a model raises whose provider's answer is none: pydantic-ai has no one error for it."""
_FINAL: Final = (ModelQuotaExceededError, ModelRequestRejectedError, ModelAuthenticationError)
_NOT_FOR_WHAT_IS_IN_IT: Final = (ModelQuotaExceededError, ModelAuthenticationError, ModelNotFoundError)
_REJECTING_STATUS: Final = frozenset({400, 413, 422})
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_SERVER_ERRORS: Final = 500
_WORD: Final = re.compile(r"[a-z][a-z_.]{1,60}")
"""A provider's word for a mistake, such as context_length_exceeded; a key has digits or capitals."""

_log = structlog.get_logger()


@contextmanager
def translated_failures() -> Iterator[None]:
    """Turn pydantic-ai's errors into TurnFailed. Providers' texts stay out of them: they may quote keys."""
    try:
        yield
    except ModelHTTPError as error:
        raise ModelFailed(
            f"the model {error.model_name} answered with HTTP status {error.status_code}", retryable=is_passing(error)
        ) from error
    except FallbackExceptionGroup as error:
        raise ModelFailed(f"each of {len(error.exceptions)} models failed", retryable=is_passing(error)) from error
    except ModelRequestTimeout as error:
        raise ModelFailed(
            f"the model {error.model_name} did not answer within {error.timeout:g} s", retryable=True
        ) from error
    except ModelAPIError as error:
        raise ModelFailed(f"the request to the model {error.model_name} failed", retryable=is_passing(error)) from error
    except ConcurrencyLimitExceeded as error:
        raise ModelFailed("too many requests wait for the model", retryable=True) from error
    except UsageLimitExceeded as error:
        raise UsageLimitReached(str(error)) from error
    except UnexpectedModelBehavior as error:
        _log.warning("output_invalid", **described(error))
        raise InvalidOutput("the model's output or tool calls kept being invalid") from error


def is_passing(error: BaseException) -> bool:
    """Whether a request to a model that failed so might succeed later: a limit, an overload, a lost connection.

    pydantic-ai sorts what providers say into classes; where it could not, the HTTP status decides. What is not even
    an answer of the API (a page of a proxy's, half a body) may be one the next time.
    """
    match error:
        case FallbackExceptionGroup():
            return any(map(is_passing, error.exceptions))
        case ModelHTTPError() if error.provider_retry_hint is not None:
            return error.provider_retry_hint
        case _ if isinstance(error, _FINAL):
            return False
        case _ if isinstance(error, _PASSING):
            return True
        case ModelHTTPError():
            return error.status_code in _PASSING_STATUS or error.status_code >= _SERVER_ERRORS
        case _:
            return isinstance(error, (ModelAPIError, *UNREADABLE)) and not _is_unsuitable(error)


def is_rejection(error: BaseException) -> bool:
    """Whether a provider refused a request for what is in it: too long for the model, say. A smaller one may do."""
    match error:
        case ContentFilterError():
            return True
        case _ if is_passing(error) or isinstance(error, _NOT_FOR_WHAT_IS_IN_IT):
            return False
        case FallbackExceptionGroup():
            return any(map(is_rejection, error.exceptions))
        case ModelHTTPError():
            return error.status_code in _REJECTING_STATUS
        case _:
            return isinstance(error, ModelRequestRejectedError)


def given_up(error: Exception, model_name: str) -> Exception:
    """Return what a request to a model ends with that is not made again.

    What would be a mistake in the team's code elsewhere, such as a TypeError, is known to be the model's here.
    """
    if isinstance(error, AgentRunError | FallbackExceptionGroup | TurnFailed) and not isinstance(
        error, UnexpectedModelBehavior
    ):
        return error
    if _is_unsuitable(error):
        return ModelFailed(f"the model {model_name} can't be given this request", retryable=False)
    return ModelFailed(f"the answer of the model {model_name} could not be read", retryable=is_passing(error))


def _is_unsuitable(error: BaseException) -> bool:
    # pydantic-ai has no class for content of a type that it does not know.
    unknown_type = type(error) is ValueError and str(error).startswith("Unknown media type")
    return unknown_type or isinstance(error, UNSUITABLE)


def described(error: BaseException) -> dict[str, JsonValue]:
    """Return what a log may say of a model's failure: none of the provider's texts, which may quote keys and users."""
    causes = _causes(error)
    frames = traceback.extract_tb(causes[-1].__traceback__)
    told: dict[str, JsonValue] = {
        "error": " from ".join(type(cause).__name__ for cause in causes),
        "at": f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None,
    }
    if isinstance(error, FallbackExceptionGroup):
        told["errors"] = [described(one) for one in error.exceptions]
    if isinstance(error, ModelHTTPError):
        told["status"] = error.status_code
        body = error.body.get("error", error.body) if isinstance(error.body, dict) else None
        if isinstance(body, dict):
            told |= {f"provider_{name}": body[name] for name in ("code", "type", "param") if _is_word(body.get(name))}
    return told


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    # A provider's client that raises an error from itself makes a circle of them.
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def seconds_asked_for(error: BaseException) -> float | None:
    """Return how long the provider asked to wait (Retry-After); of several models, the shortest."""
    if isinstance(error, FallbackExceptionGroup):
        asked = [seconds for one in error.exceptions if (seconds := seconds_asked_for(one)) is not None]
        return min(asked) if len(asked) == len(error.exceptions) else None
    return error.retry_after if isinstance(error, ModelAPIError) else None
