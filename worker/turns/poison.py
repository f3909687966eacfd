"""Poison: runs that kill their workers, told from those that only died with them, and given up after some attempts.

An attempt is fruitless if no step of it was recorded and its worker did not outlive it. A run with two fruitless
attempts runs alone in its worker, its last attempt at any rate: what dies beside another is then never given up for
that. One that is given up is stored and answered as ERROR, and its request kept with the dead letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from schemas.errors import ErrorCode
from schemas.replies import RunReply, RunStatus
from worker.errors import AttemptsExhausted
from worker.executors.attempt import Outcome, failed, new_turn
from worker.executors.turn import Turn, TurnContext
from worker.intake.forwarding import ATTEMPTS_HEADER, STEPS_HEADER, TOKENS_HEADER
from worker.sessions.store import ClaimedSession
from worker.turns.starts import finished_steps, used_by

_SUSPECT_AFTER: Final = 2


@dataclass(frozen=True, slots=True)
class PoisonRules:
    """When a run is suspected, and when it is given up."""

    max_attempts: int
    """Fruitless ones: TEAMTURN_MAX_ATTEMPTS."""

    def give_up(self, fruitless: int) -> bool:
        """Whether a run with so many fruitless attempts is not executed any more."""
        return fruitless >= self.max_attempts

    def run_alone(self, fruitless: int) -> bool:
        """Whether a run with so many fruitless attempts is executed with no other beside it."""
        return fruitless >= max(1, min(_SUSPECT_AFTER, self.max_attempts - 1))


async def given_up(claimed: ClaimedSession) -> tuple[Turn, Outcome]:
    """Return the turn of a run that is given up, with what its attempts have spent, and its outcome."""
    claim = claimed.claim
    steps = finished_steps(await claimed.begin_attempt())
    turn = new_turn(claimed.asked, claim.session, TurnContext(claim.database_time), attempt=claim.attempts)
    # What it goes on with was used by the runs before it.
    turn.usage = used_by([step for step in steps if step.attempt > 0])
    message = f"{claim.fruitless} of {claim.attempts} attempts came to nothing: their workers died"
    return turn, failed(AttemptsExhausted(message))


def is_given_up(reply: RunReply) -> bool:
    """Whether a reply is that of a run that was given up."""
    return reply.error is not None and reply.error.code is ErrorCode.ATTEMPTS_EXHAUSTED


def given_up_before(body: bytes) -> RunReply | None:
    """Return a stored reply if its run was given up."""
    if from_json(body)["status"] != RunStatus.ERROR:
        return None
    reply = RunReply.model_validate_json(body)
    return reply if is_given_up(reply) else None


def spent_headers(reply: RunReply) -> dict[str, Any]:
    """Return what the dead letter says of the attempts of a run that was given up."""
    return {
        ATTEMPTS_HEADER: reply.attempt,
        STEPS_HEADER: reply.metrics.model_requests + reply.metrics.tool_calls,
        TOKENS_HEADER: reply.metrics.total_tokens,
    }
