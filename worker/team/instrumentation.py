"""pydantic-ai's own spans: its agents' runs, each request to a model and each call of a tool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic_ai import Agent, InstrumentationSettings


@contextmanager
def models_traced(*, content: bool) -> Iterator[None]:
    """Have pydantic-ai open spans for the block, with what is said and with tools' arguments and results if asked for.

    That goes for every agent of the process but those that have an `instrument` of their own.
    """
    settings = InstrumentationSettings(
        include_content=content,
        include_binary_content=False,
        include_model_request_parameters=False,  # of every tool, in each span
    )
    Agent.instrument_all(settings)
    try:
        yield
    finally:
        Agent.instrument_all(False)  # noqa: FBT003 - pydantic-ai's way to say so
