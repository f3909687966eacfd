"""`@executor`: an async function that takes turns."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import JsonValue

from schemas.ids import SessionType, Target
from worker.executors.arguments import FLAG, HISTORY_RUNS, check, one_of, takes, target_of
from worker.executors.turn import Turn

TurnFunction = Callable[[Turn], Awaitable[Any]]
"""An async function of the Turn; it returns a JSON value."""

_KINDS: Final = {"kind": one_of(*(kind.value for kind in SessionType)), "history_runs": HISTORY_RUNS, "journal": FLAG}


@dataclass(frozen=True)
class FunctionExecutor:
    """An async function that takes turns. Calling it calls the function."""

    target: Target
    function: TurnFunction
    history_runs: int | None
    journal: bool = True
    model_name: str | None = None
    summarizer: None = None

    @property
    def name(self) -> str:
        """The id: a function has no other name."""
        return self.target.id

    async def __call__(self, turn: Turn) -> JsonValue:
        """Call the function itself, as in a test of it."""
        answer: JsonValue = await self.function(turn)
        return answer

    async def run(self, turn: Turn) -> JsonValue:
        """Take the turn by calling the function."""
        return await self(turn)


def executor(
    id: str,  # noqa: A002 - the field's word, as in Team(id=…)
    *,
    kind: Literal["team", "agent", "workflow"] = "team",
    history_runs: int | None = 3,
    journal: bool = True,
) -> Callable[[TurnFunction], FunctionExecutor]:
    """Make an async function `(turn: Turn) -> JSON value` one that can take turns.

    Raises ValueError for a wrong id or kind, TypeError for a function that is not async or
    does not take the turn.

    Args:
        id: What requests name it by.
        kind: By which field they do: team_id, agent_id or workflow_id.
        history_runs: How many completed runs of the session `turn.history` holds; None: all, 0: none.
        journal: Whether the turn's steps are recorded, so that another attempt does not make them again.

    """
    check(f"executor {id!r}", _KINDS, {"kind": kind, "history_runs": history_runs, "journal": journal})
    target = target_of(SessionType(kind), id, f"executor id {id!r}")

    def made(function: TurnFunction) -> FunctionExecutor:
        if not inspect.iscoroutinefunction(function) or not takes(function, None):
            name = getattr(function, "__name__", "run")
            raise TypeError(f"executor {id!r}: the function must be async, and take the turn: async def {name}(turn)")
        return FunctionExecutor(target=target, function=function, history_runs=history_runs, journal=journal)

    return made
