"""The story: one request, from delivery to acknowledgement.

    deliver   RabbitMQ hands the request to the session's mailbox; it is unacknowledged until the end
    claim     the session's advisory lock, then what is stored: receipt, session row, the last runs
    decide    replay, execute or refuse
    execute   the executor takes the turn
    commit    session row, run rows, receipt with the reply's bytes: one transaction, on the lock's own connection
    reply     exactly the stored bytes, with a publisher confirm; the session's next turn is taken meanwhile
    ack       the request is done; a summary of the session, where its team keeps one, is written after that

The unacknowledged request is the outbox: nothing is acknowledged before its reply is confirmed. Whoever holds the
delivery replies. What a redelivered request finds, when its worker died after

    delivery  no run: it runs
    claim     Postgres dropped the lock with the connection: it runs
    execute   only that it was started, if it had lasted a moment: it runs again, as the next attempt
    commit    the receipt: its stored reply is published again, nothing is executed
    reply     the receipt: the same bytes again, with the same message_id; a consumer drops the second

While a first attempt still runs elsewhere, the second waits for the lock, and then finds the receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from pydantic_core import from_json
from structlog.contextvars import bind_contextvars, bound_contextvars

from schemas.replies import RunReply, RunStatus
from worker.decide import Execute, Refuse, Replay, decide
from worker.errors import (
    ClaimOutdated,
    InvalidResult,
    SessionBusyElsewhere,
    SessionDeleted,
    StatementRefused,
    StoreUnavailable,
)
from worker.executors.attempt import Outcome, attempt, failed, new_turn
from worker.executors.registry import Executors
from worker.executors.turn import Executor, Turn
from worker.intake.delivery import RequestDelivery
from worker.replies.answers import Timing, body_of, finished, rejected
from worker.replies.in_order import RepliesInOrder
from worker.sessions.store import ClaimedSession, SessionStore
from worker.sessions.stored_runs import FinishedTurn
from worker.sessions.summaries import Summaries
from worker.settings import Settings

_RECORD_AFTER_SECONDS: Final = 0.05
_LARGEST_REPLY_BYTES: Final = 15 * 2**20
"""RabbitMQ 4 refuses messages over 16 MiB, and with them the channel."""
_MOST_OUTDATED_CLAIMS: Final = 5
_BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The reply's bytes, and whether they are those of a turn, taken now or before."""

    body: bytes
    of_turn: bool


class TurnTaker:
    """Takes requests, one after the other for each session; see the module's docstring."""

    def __init__(
        self,
        sessions: SessionStore,
        executors: Executors,
        replies: RepliesInOrder,
        summaries: Summaries,
        settings: Settings,
    ) -> None:
        self._sessions = sessions
        self._summaries = summaries
        self._executors = executors
        self._replies = replies
        self._limit = settings.turn_limit
        self._slots = asyncio.Semaphore(settings.max_concurrent_turns)

    async def take(self, received: RequestDelivery) -> None:
        """Take one request from delivery to its stored answer; its reply and ack follow by themselves, in order."""
        request = received.request
        with bound_contextvars(run_id=request.run_id, session_id=request.session_id, attempt=1):
            executor = self._executors.get(request.target)
            answer = await self._answered(received, executor)
            if answer is not None:
                # Not for a refusal: the session may be somebody else's.
                summarized = executor if answer.of_turn else None
                then = partial(self._want_summary, request.session_id, summarized)
                self._replies.send(answer.body, received, then=then)

    def _want_summary(self, session_id: str, executor: Executor | None) -> None:
        if executor is not None and executor.summarizer is not None:
            self._summaries.want(session_id, executor.summarizer)

    async def _answered(self, received: RequestDelivery, executor: Executor | None) -> _Answer | None:
        """Return the answer, stored; or None, if the delivery died while there was none."""
        request, tries = received.request, 0
        while received.alive:
            if received.outdated == _MOST_OUTDATED_CLAIMS:
                # Somebody writes the session all the time, without its lock; each try would cost model calls.
                raise ClaimOutdated(f"{received.outdated} claims were outdated when they were to be committed")
            try:
                # A turn slot is held only by who works: not by a session that waits for another worker's lock.
                async with (
                    self._slots,
                    self._sessions.claimed(
                        request,
                        executor.history_runs if executor else 0,
                        summarized=executor is not None and executor.summarizer is not None,
                    ) as claimed,
                ):
                    if received.delivery.life.ended.is_set():
                        return None  # given away while it waited for a slot or for its claim
                    return await self._settled(claimed, received, executor)
            except SessionBusyElsewhere:
                _log.debug("session_busy_elsewhere", tries=tries)
            except StoreUnavailable as error:
                # Whether a commit whose answer was lost took effect is what the next claim finds out.
                _log.warning("turn_claimed_again", reason=str(error), tries=tries)
            except ClaimOutdated as error:
                _log.warning("turn_claimed_again", reason=str(error), tries=tries)
                received.outdated += 1
            await asyncio.sleep(_BACK_OFF_SECONDS[min(tries, len(_BACK_OFF_SECONDS) - 1)])
            tries += 1
        return None

    async def _settled(self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor | None) -> _Answer:
        """Return the answer to a claimed request, stored if it has to be."""
        match decide(
            claimed.request,
            claimed.claim,
            target_known=executor is not None,
            forbidden_property=received.delivery.forbidden_property(),
        ):
            case Replay(reply):
                _log.info("turn_replayed")
                return _Answer(reply, of_turn=from_json(reply)["status"] != RunStatus.REJECTED)
            case Refuse() as refusal:
                return _Answer(await self._refused(claimed, received, refusal), of_turn=False)
            case Execute() if executor is not None:
                return _Answer(await self._executed(claimed, received, executor), of_turn=True)
            case unexpected:
                raise AssertionError(f"decided {unexpected} for a target that is not known")

    async def _refused(self, claimed: ClaimedSession, received: RequestDelivery, refusal: Refuse) -> bytes:
        _log.info("turn_rejected", code=refusal.code.value, reason=refusal.message)
        # What is not stored is made again for a redelivery: from the message alone, not from the clock.
        now = time.time() if refusal.stored else received.delivery.published or 0.0
        reply = rejected(claimed.request, refusal.code, refusal.message, now=now, retryable=refusal.retryable)
        body = body_of(reply)
        if refusal.stored:
            await claimed.keep_answer(reply, body)
        return body

    async def _executed(self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor) -> bytes:
        """Take the turn and commit it. Users' code can't make this raise; only the database can."""
        request, claim = claimed.request, claimed.claim
        number = await _attempt_number(claimed, received)
        bind_contextvars(attempt=number)
        turn = new_turn(request, claim.session, claim.history, attempt=number)
        started = time.time()
        async with _start_recorded(claimed, already=number > 1 or received.delivery.redelivered):
            outcome = await attempt(
                executor, turn, limit=self._limit, now=claim.database_time, deadline=request.deadline
            )
        timing = Timing(queued=received.delivery.queued_since, started=started, ended=time.time())
        try:
            reply, body = await self._committed(claimed, executor, turn, outcome, timing)
        except (StatementRefused, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # Postgres refuses it; or what users' code has left in the turn's fields is not what belongs there.
            _log.error("result_refused", reason=str(error), exc_info=error)
            turn = new_turn(request, claim.session, claim.history, attempt=number)
            unstorable = failed(InvalidResult("the result can't be stored"))
            reply = finished(request, turn, unstorable, number=None, timing=timing)
            body = body_of(reply)
            await claimed.keep_answer(reply, body)
        _log.info(
            "turn_finished",
            target=str(request.target),
            status=reply.status.value,
            code=reply.error.code.value if reply.error else None,
            turn=reply.turn,
            **reply.metrics.model_dump(),
        )
        return body

    async def _committed(
        self, claimed: ClaimedSession, executor: Executor, turn: Turn, outcome: Outcome, timing: Timing
    ) -> tuple[RunReply, bytes]:
        reply = finished(claimed.request, turn, outcome, number=claimed.next_turn, timing=timing)
        body = body_of(reply)
        if len(body) > _LARGEST_REPLY_BYTES:
            outcome = failed(InvalidResult(f"the reply has {len(body)} bytes; the limit is {_LARGEST_REPLY_BYTES}"))
            turn.member_runs.clear()
            reply = finished(claimed.request, turn, outcome, number=claimed.next_turn, timing=timing)
            body = body_of(reply)
        left = FinishedTurn(
            name=executor.name,
            model_name=executor.model_name,
            session_state=outcome.session_state,
            session_name=outcome.session_name,
            messages=tuple(turn.messages),
            member_runs=tuple(turn.member_runs),
            step_results=tuple(turn.step_results),
        )
        try:
            await claimed.commit(reply, body, left)
        except SessionDeleted as error:
            reply = finished(claimed.request, turn, failed(error), number=None, timing=timing)
            body = body_of(reply)
            await claimed.keep_answer(reply, body)
        return reply, body


async def _attempt_number(claimed: ClaimedSession, received: RequestDelivery) -> int:
    """Return the number of this attempt, recorded before anything else where there may have been one before it."""
    recorded = 0
    if received.attempts or received.delivery.redelivered:
        recorded = await claimed.count_attempt()
    received.attempts = max(recorded, received.attempts + 1)
    return received.attempts


@asynccontextmanager
async def _start_recorded(claimed: ClaimedSession, *, already: bool) -> AsyncIterator[None]:
    """Record the start of a first attempt, beside its execution, once it has lasted a moment.

    An instant turn costs no write for it; one that a model takes does, and its worker's death is counted.
    """
    if already:
        yield
        return
    recording: list[asyncio.Task[int]] = []
    # No task but where there is something to record: most turns of a fast executor are over before.
    timer = asyncio.get_running_loop().call_later(
        _RECORD_AFTER_SECONDS, lambda: recording.append(asyncio.create_task(claimed.count_attempt()))
    )
    try:
        yield
    finally:
        # What was submitted by now is written before the commit, which drops it: a lane keeps the order.
        timer.cancel()
        for task in recording:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
