"""What a workflow of Agno's is made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

from agno.agent import Agent
from agno.team import Team
from agno.workflow import Workflow

_INNER: Final = ("steps", "else_steps", "choices")
_DONE_BY: Final = ("agent", "team", "workflow")


def entities_in(part: Any) -> Iterator[Any]:
    """Return the agents, teams and workflows that do its steps, at any depth but within a workflow of their own."""
    for step in steps_in(part):
        if isinstance(step, Agent | Team | Workflow):
            yield step
        else:
            yield from (found for name in _DONE_BY if (found := getattr(step, name, None)) is not None)


def steps_in(part: Any) -> Iterator[Any]:
    """Return its steps, and those of its loops, branches and parallels."""
    for name in _INNER:
        inner = getattr(part, name, None)
        for step in inner if isinstance(inner, list | tuple) else [inner]:
            if step is None or inspect.isroutine(step):
                continue
            yield step
            if not isinstance(step, Agent | Team | Workflow):
                yield from steps_in(step)
