"""The start of an attempt: its number, what earlier ones left, and the turn that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Final

import structlog
from structlog.contextvars import bind_contextvars

from schemas.requests import RunRequest
from worker.errors import ClaimOutdated, StoreUnavailable
from worker.executors.attempt import new_turn
from worker.executors.events import Events
from worker.executors.journal import ENDED, GIVEN_BACK_ATTEMPT, Journal, StepRecord
from worker.executors.pauses import Origin, Used
from worker.executors.turn import Executor, Turn, TurnContext, Usage
from worker.intake.delivery import RequestDelivery
from worker.operations.tracing import note
from worker.sessions.claim import Claim, Earlier
from worker.sessions.store import ClaimedSession, SessionStore
from worker.turns.telling import PublishEvent, tell_joined

_RECORD_AFTER_SECONDS: Final = 0.05
_UNCOUNT_SECONDS: Final = 2.0
_OUTAGE_SECONDS: Final = 600.0
_RETRY_SECONDS: Final = 1.0

_log = structlog.get_logger()


async def begun_turn(
    claimed: ClaimedSession, received: RequestDelivery, executor: Executor, publish: PublishEvent
) -> Turn:
    """Begin an attempt, and return its turn, whose events are told if its request asks for that.

    Where there may have been one before it, it is recorded before anything else; what that one recorded is replayed.
    So is one that is watched: no later attempt may have its number, by which its events are told from others'.
    """
    request, claim = claimed.request, claimed.claim
    earlier = Earlier(attempt=1)
    await claimed.continue_paused()
    if begins_recorded(claimed, received):
        earlier = await claimed.begin_attempt(outlived=received.outlived)
        received.outlived = 0
    received.attempts = max(earlier.attempt, received.attempts + 1)
    bind_contextvars(attempt=received.attempts)
    steps = finished_steps(earlier)
    behind = max(steps, key=lambda step: step.seq).key if steps else None
    if steps:
        _log.info("turn_resumed", steps=len(steps), behind=behind)
        note({"teamturn.resumed_steps": len(steps)})
    given = _given(claim, earlier)
    kept = Journal(
        claimed.record_steps if getattr(executor, "journal", True) else None,
        held=claimed.still_held,
        attempt=received.attempts,
        recorded=earlier.steps,
        context=given.as_json,
    )
    origin = None if claimed.origin is None else _with_given_back(claimed.origin, earlier)
    turn = new_turn(claimed.asked, claim.session, given, attempt=received.attempts, journal=kept, origin=origin)
    turn.events = _events_of(request, publish, turn.attempt)
    tell_joined(publish, claim.joined, answered_by=request.run_id, attempt=turn.attempt)
    kept.changed = lambda change: turn.events.tell("state_changed", changed=change.values, removed=change.removed)
    turn.events.tell("run_started", resumed_behind=behind)
    if given.history and getattr(executor, "whole_history", False):
        turn.whole_history = await claimed.whole_runs([run.run_id for run in given.history])
    return turn


def begins_recorded(claimed: ClaimedSession, received: RequestDelivery) -> bool:
    """Whether an attempt's start is recorded before anything else of it; else it is beside its execution."""
    request = claimed.request
    begun_before = claimed.claim.attempts > 0 or received.attempts > 0 or received.delivery.redelivered
    return begun_before or request.stream or request.continues is not None


def _events_of(request: RunRequest, publish: PublishEvent, attempt: int) -> Events:
    return Events(partial(publish, request) if request.stream else None, run_id=request.run_id, attempt=attempt)


def finished_steps(earlier: Earlier) -> list[StepRecord]:
    """Return the steps that earlier attempts have recorded the end of."""
    return [step for step in earlier.steps if step.state in ENDED]


def used_by(steps: Sequence[StepRecord]) -> Usage:
    """Return what some steps have used, as far as their records say."""
    return Usage(
        input_tokens=sum(step.input_tokens for step in steps),
        output_tokens=sum(step.output_tokens for step in steps),
        model_requests=sum("model.request#" in step.key for step in steps),
        tool_calls=sum("tool:" in step.key for step in steps),
    )


def _with_given_back(origin: Origin, earlier: Earlier) -> Origin:
    """Return an origin with what a run used that went on with it before, and failed: its reply has told of that."""
    steps = finished_steps(earlier)
    failed = used_by([step for step in steps if step.attempt == GIVEN_BACK_ATTEMPT])
    used = {name: count + getattr(origin.used, name) for name, count in asdict(failed).items()}
    return origin.model_copy(update={"used": Used(**used)})


def _given(claim: Claim, earlier: Earlier) -> TurnContext:
    recorded = earlier.context
    if recorded is None:
        return TurnContext(claim.database_time, claim.history, claim.session.summary if claim.session else None)
    summary = recorded["summary"]
    return TurnContext(
        started_at=datetime.fromisoformat(str(recorded["started_at"])),
        history=earlier.history,
        summary=summary if isinstance(summary, str) else None,
    )


@asynccontextmanager
async def start_recorded(claimed: ClaimedSession, turn: Turn, *, already: bool) -> AsyncIterator[None]:
    """Record the start of a first attempt, beside its execution, once it has lasted a moment.

    An instant turn costs no write for it; one that a model takes does, and its worker's death is counted. An attempt
    that is cancelled, since the worker stops, is not.
    """
    recording: list[asyncio.Task[int]] = []
    # No task but where there is something to record: most turns of a fast executor are over before.
    timer = asyncio.get_running_loop().call_later(
        _RECORD_AFTER_SECONDS,
        lambda: None if already else recording.append(asyncio.create_task(claimed.count_attempt())),
    )
    try:
        yield
    except asyncio.CancelledError:
        if (already or recording) and not turn.steps.journal.has_recorded:
            await _uncount(claimed)
        raise
    finally:
        # What was submitted by now is written before the commit, which drops it: a lane keeps the order.
        timer.cancel()
        for task in recording:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _uncount(claimed: ClaimedSession) -> None:
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(_UNCOUNT_SECONDS):
            await claimed.uncount_attempt()


@contextmanager
def counted_if_outlived(received: RequestDelivery, turn: Turn) -> Iterator[None]:
    """Note it if the attempt ends for what is no fault of the run's: the lane is lost, or its claim outdated."""
    try:
        yield
    except (StoreUnavailable, ClaimOutdated):
        received.outlived += not turn.steps.journal.has_fruit
        raise


async def outlived(sessions: SessionStore, received: RequestDelivery) -> None:
    """Record that this worker lives, though its attempts came to nothing, once Postgres is there again.

    Else a run that needs some minutes for its first step would be taken for poison after a few restarts of Postgres.
    Nothing else of the session can be done here meanwhile.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_OUTAGE_SECONDS):
            while received.outlived:
                try:
                    await sessions.uncount_attempt(received.request)
                    received.outlived -= 1
                except StoreUnavailable:
                    await asyncio.sleep(_RETRY_SECONDS)
