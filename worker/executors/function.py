"""`@executor`: an async function that takes turns."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, ValidationError

from schemas.ids import SessionType, Target
from worker.executors.turn import Turn

TurnFunction = Callable[[Turn], Awaitable[JsonValue]]


@dataclass(frozen=True)
class FunctionExecutor:
    """An async function that takes turns. Calling it calls the function."""

    target: Target
    function: TurnFunction
    history_runs: int | None
    model_name: str | None = None
    summarizer: None = None

    @property
    def name(self) -> str:
        """The id: a function has no other name."""
        return self.target.id

    async def __call__(self, turn: Turn) -> JsonValue:
        """Call the function itself, as in a test of it."""
        return await self.function(turn)

    async def run(self, turn: Turn) -> JsonValue:
        """Take the turn by calling the function."""
        return await self.function(turn)


def executor(
    id: str,  # noqa: A002 - the field's word, as in Team(id=…)
    *,
    kind: Literal["team", "agent", "workflow"] = "team",
    history_runs: int | None = 3,
) -> Callable[[TurnFunction], FunctionExecutor]:
    """Make an async function `(turn: Turn) -> JSON value` one that can take turns.

    Raises ValueError for a wrong id or kind, TypeError for a function that is not async.

    Args:
        id: What requests name it by.
        kind: By which field they do: team_id, agent_id or workflow_id.
        history_runs: How many completed runs of the session `turn.history` holds; None: all, 0: none.

    """
    try:
        target = Target(type=SessionType(kind), id=id)
    except ValidationError as error:
        raise ValueError(f"executor id {id!r}: {error.errors()[0]['msg']}") from None
    if history_runs is not None and history_runs < 0:
        raise ValueError(f"executor {id!r}: history_runs is None or 0 and more, not {history_runs}")

    def made(function: TurnFunction) -> FunctionExecutor:
        if not inspect.iscoroutinefunction(function):
            name = getattr(function, "__name__", "run")
            raise TypeError(f"executor {id!r}: the function must be async: async def {name}(turn)")
        return FunctionExecutor(target=target, function=function, history_runs=history_runs)

    return made
