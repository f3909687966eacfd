"""How an Agno run failed, as the codes that the reply carries. Texts of providers and of users' code stay out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agno.exceptions import AgnoError, ContextWindowExceededError, ModelProviderError

from worker.errors import ExecutorFailed, ModelFailed, TurnFailed

_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_SERVER_ERRORS: Final = 500
_SHORTEST_TEXT: Final = 8
"""Shorter ones are words that an answer may well have."""
_CHECKS: Final = {"input_check_error": "the input", "output_check_error": "the output"}


def failure_of_run(who: str, run: Any, of_models: Sequence[Exception]) -> TurnFailed:
    """Return what a run that ended as ERROR failed with. Of its exception Agno has kept the text, and a type."""
    for error in reversed(of_models):
        if isinstance(error, TurnFailed) or str(error) == str(run.content):
            return failure_of_model(error)
    event = next((event for event in reversed(run.events or []) if getattr(event, "error_type", None)), None)
    if event is not None and event.error_type in _CHECKS:
        return ExecutorFailed(f"{who}: a check refused {_CHECKS[event.error_type]} ({event.error_id})")
    named = event.error_type if event is not None else "an error"
    return ExecutorFailed(f"{who} raised {named}")


def failure_of_model(error: Exception) -> TurnFailed:
    """Return what a model's exception is in a reply."""
    if isinstance(error, TurnFailed):
        return error
    if not isinstance(error, AgnoError):
        return ModelFailed(f"the request to the model failed ({type(error).__name__})", retryable=False)
    named = getattr(error, "model_id", None) or getattr(error, "model_name", None) or ""
    known: Any = ModelProviderError.classify(error) if isinstance(error, ModelProviderError) else error
    status = known.status_code
    passing = status in _PASSING_STATUS or status >= _SERVER_ERRORS
    # Agno gives a status of its own, 502, to what had none: a connection that was lost, say.
    return ModelFailed(
        f"the request to the model {named} failed with status {status}".replace("  ", " "),
        retryable=passing and not isinstance(known, ContextWindowExceededError),
    )


def without_texts(content: Any, of_models: Sequence[Exception]) -> Any:
    """Return a content in which no model's exception is quoted. Raises TurnFailed where there is nothing else in it.

    Agno has the text of an exception stand for an answer: of a member that answers in its leader's place, of a step.
    """
    if not isinstance(content, str):
        return content
    for error in of_models:
        text = str(error)
        if text and content.strip() == text.strip():
            raise failure_of_model(error)
        if len(text) >= _SHORTEST_TEXT:
            content = content.replace(text, failure_of_model(error).message)
    return content
