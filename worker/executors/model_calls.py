"""What models have answered, told to whoever counts it: teams tell it, and need not know who listens.

What is given again from a journal is no call: it was told when it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request that a model has answered."""

    model: str | None
    """As the response names it."""
    input_tokens: int
    output_tokens: int
    dollars: float | None = None
    """What it cost in US dollars; None: nobody knows its price."""


_told: ContextVar[Callable[[ModelCall], None] | None] = ContextVar("told of model calls", default=None)


@contextmanager
def model_calls_told(told: Callable[[ModelCall], None]) -> Iterator[None]:
    """Have `told` called with each call of a model that the block makes, in tasks of its own too."""
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


def tell_model_call(call: ModelCall) -> None:
    """Tell a call to who wants to know of those made here, if anybody does."""
    if (told := _told.get()) is not None:
        told(call)
