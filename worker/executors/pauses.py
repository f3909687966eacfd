"""Pauses: what a run leaves that waits for a human, and what another run that goes on with it begins with.

A tool call that needs approval ends the run as PAUSED. Its steps stay recorded. The run that continues it is the same
turn again, under a run_id of its own: it is asked what the paused one was asked, replays what that has recorded, and
comes to the same calls, which are decided by then. So nothing of a model's or an executor's inner state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.replies import Approval
from schemas.requests import Decision, Input

WhilePaused = Literal["accept", "refuse"]
"""What happens to a session's other requests while one of its runs is paused."""

DEFAULT_PAUSE_SECONDS: Final = 7 * 86_400.0


class Used(BaseModel):
    """What runs have used so far, as their replies say."""

    model_config = ConfigDict(frozen=True)

    input_tokens: int = 0
    output_tokens: int = 0
    model_requests: int = 0
    tool_calls: int = 0


class Origin(BaseModel):
    """What a turn began as that another run goes on with."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """The run that began it: the first that paused."""
    id_seed: str
    """That one's; see Turn.id_seed."""
    input: Input
    """What it was asked."""
    used: Used = Field(default_factory=Used)
    """What was used up to the last pause."""
    decisions: dict[str, Decision] = Field(default_factory=dict)
    """What was decided so far, by the names of the calls."""
    functions: frozenset[str] = frozenset()
    """Steps of a workflow that functions have done: what they changed in the state themselves is stored."""


class Pending(BaseModel):
    """A call that waits to be decided."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The call's within the turn, the same in every run of it: a model may use a call's id again."""
    approval: Approval


class Pause(BaseModel):
    """What a paused run leaves to the one that goes on with it."""

    model_config = ConfigDict(frozen=True)

    origin: Origin
    pending: tuple[Pending, ...]

    def unknown(self, decisions: Sequence[Decision]) -> list[str]:
        """Return the calls that are decided and yet not waited for."""
        waited_for = {one.approval.tool_call_id for one in self.pending}
        return [decision.tool_call_id for decision in decisions if decision.tool_call_id not in waited_for]

    def decided(self, decisions: Sequence[Decision]) -> Origin:
        """Return what the run begins with that goes on, with these decisions."""
        names = {one.approval.tool_call_id: one.name for one in self.pending}
        more = {names[one.tool_call_id]: one for one in decisions if one.tool_call_id in names}
        return self.origin.model_copy(update={"decisions": {**self.origin.decisions, **more}})


class RunPaused(Exception):
    """A turn can't go on before somebody has decided about tool calls."""

    def __init__(self, pending: Sequence[Pending]) -> None:
        super().__init__(f"{len(pending)} tool calls wait to be decided")
        self.pending = tuple(pending)


@dataclass(frozen=True, slots=True)
class PauseRules:
    """How the runs of an executor pause."""

    while_paused: WhilePaused = "accept"
    seconds: float = DEFAULT_PAUSE_SECONDS
    """How long one waits to be continued."""

    @classmethod
    def of(cls, executor: object) -> PauseRules:
        """Return those of an executor; of one that has none, the defaults."""
        found = getattr(executor, "pause_rules", None)
        return found if isinstance(found, cls) else cls()


def together(pending: Sequence[Pending]) -> tuple[Pending, ...]:
    """Return all that is waited for, each under an id of its own: members' calls can have the same."""
    taken: dict[str, Pending] = {}
    for one in pending:
        asked, number = one.approval.tool_call_id, 1
        while asked in taken:
            number += 1
            asked = f"{one.approval.tool_call_id}#{number}"
        taken[asked] = one.model_copy(update={"approval": one.approval.model_copy(update={"tool_call_id": asked})})
    return tuple(taken.values())
