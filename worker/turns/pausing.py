"""Pauses: what a request has to know of its session's paused runs.

    continues   it goes on with a paused run of its session: what that has recorded becomes its own as it begins
    refuse      its team takes no other request while a run of the session is paused (`while_paused`)

All others are not asked, and cost nothing. A run that goes on with another ends that one's pause when it completes,
pauses in its turn, or is cancelled. When it fails, the other is paused again, and whoever continues it next makes
nothing again of what is done.
"""

from __future__ import annotations

from dataclasses import replace

from worker.executors.pauses import PauseRules
from worker.executors.turn import Executor
from worker.sessions.store import ClaimedSession


async def with_pauses(claimed: ClaimedSession, executor: Executor | None) -> ClaimedSession:
    """Return a claim with what its request has to know of paused runs, if that is anything."""
    claim = claimed.claim
    asks = claimed.request.continues is not None or PauseRules.of(executor).while_paused == "refuse"
    if claim.receipt is not None or claim.session is None or not asks:
        return claimed
    return replace(claimed, claim=replace(claim, pauses=await claimed.pauses()))
