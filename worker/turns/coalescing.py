"""Coalescing: requests that wait together become one turn (`on_busy: coalesce`).

When such a request comes to its turn, those behind it in its mailbox join it that ask for the same as it does (target,
user, `stream`), up to the first that does not. Who has joined is stored before the first step, with what it asks:
whoever takes the turn again takes it for the same requests. The commit stores an answer to each. Each comes to its own
place in the mailbox still, finds its answer there, and has it published as any other that was answered before.

Whoever cancels one of them cancels the turn: it is CANCELLED for all. Its time is up with the earliest deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import structlog

from schemas.requests import OnBusy, RunRequest
from worker.decide import too_large
from worker.executors.asked import asked_together
from worker.intake.delivery import RequestDelivery
from worker.sessions.claim import Claim
from worker.sessions.store import ClaimedSession
from worker.turns.running import Run

MOST_JOINED: Final = 100
MOST_BYTES: Final = 1 * 2**20
"""Of what they ask together, as JSON: as large as one request may be as it is set up."""

_log = structlog.get_logger()


async def coalesced(claimed: ClaimedSession, run: Run, received: RequestDelivery) -> ClaimedSession:
    """Return a claim with those that have joined its turn, before now or now. Raises as ClaimedSession.coalesce."""
    request, claim = claimed.request, claimed.claim
    if request.on_busy is not OnBusy.COALESCE or request.continues is not None:
        return claimed
    admitted = bool(claim.attempts or received.attempts)
    candidates = [] if admitted else list(_candidates(received, claim))
    if not (candidates or admitted or received.delivery.redelivered):
        return claimed
    # Known before the claim of what was said of them: nothing falls in between.
    run.answers(candidates)
    found = await claimed.coalesce(candidates)
    run.answers(found.joined)
    if found.cancelled:
        run.cancel()
    if found.joined:
        _log.debug("requests_joined", joined=[one.run_id for one in found.joined])
    return replace(claimed, claim=replace(claim, joined=found.joined))


def _candidates(received: RequestDelivery, claim: Claim) -> Iterator[RunRequest]:
    """Yield the requests behind one that may join its turn, in their order."""
    first = received.request
    joining: list[RunRequest] = []
    size_bytes = 0
    seen = {first.run_id}
    for one in received.behind:
        request = one.request
        if one.settled or request.run_id in seen:
            continue
        if not _alike(first, request) or one.delivery.forbidden_property() is not None:
            return
        if request.deadline is not None and request.deadline <= claim.database_time:
            continue  # refused in its place
        size_bytes += len(request.model_dump_json(exclude_defaults=True))
        if len(joining) == MOST_JOINED or size_bytes > MOST_BYTES:
            return
        joining.append(request)
        adds = request.session_state or request.metadata
        if adds and too_large(asked_together(first, joining), claim.session) is not None:
            return
        seen.add(request.run_id)
        yield request


def _alike(first: RunRequest, other: RunRequest) -> bool:
    joins = other.on_busy is OnBusy.COALESCE and other.continues is None
    return joins and _asks_of(first) == _asks_of(other)


def _asks_of(request: RunRequest) -> tuple[object, ...]:
    return (request.target, request.user_id, request.stream)
