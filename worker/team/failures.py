"""What pydantic-ai raises, as the codes that the reply carries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)

from worker.errors import InvalidOutput, ModelFailed, UsageLimitReached

_WORTH_ANOTHER_TRY: Final = frozenset({408, 409, 425, 429})
_SERVER_ERRORS: Final = 500


@contextmanager
def translated_failures() -> Iterator[None]:
    """Turn pydantic-ai's errors into TurnFailed. Providers' texts stay out of them: they may quote keys."""
    try:
        yield
    except ModelHTTPError as error:
        raise ModelFailed(
            f"the model {error.model_name} answered with HTTP status {error.status_code}", retryable=_is_passing(error)
        ) from error
    except FallbackExceptionGroup as error:
        raise ModelFailed(
            f"each of {len(error.exceptions)} models failed", retryable=any(map(_is_passing, error.exceptions))
        ) from error
    except ModelAPIError as error:
        raise ModelFailed(f"the model {error.model_name} could not be reached", retryable=True) from error
    except UsageLimitExceeded as error:
        raise UsageLimitReached(str(error)) from error
    except UnexpectedModelBehavior as error:
        raise InvalidOutput("the model's output or tool calls kept being invalid") from error


def _is_passing(error: Exception) -> bool:
    """Whether the same request might succeed later: a limit, an overload, a lost connection."""
    if isinstance(error, ModelHTTPError):
        return error.status_code in _WORTH_ANOTHER_TRY or error.status_code >= _SERVER_ERRORS
    return isinstance(error, ModelAPIError)
