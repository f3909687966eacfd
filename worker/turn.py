"""The story: one request, from delivery to acknowledgement.

    deliver   RabbitMQ hands the request to the session's mailbox; it is unacknowledged until the end
    claim     the session's advisory lock, then what is stored: receipt, session row, the last runs
    decide    replay, execute or refuse
    execute   the executor takes the turn
    commit    session row, run rows, receipt with the reply's bytes: one transaction, on the lock's own connection
    reply     exactly the stored bytes, with a publisher confirm
    ack       the request is done

The unacknowledged request is the outbox: nothing is acknowledged before its reply is confirmed. Whoever holds the
delivery replies. What a redelivered request finds, when its worker died after

    delivery  no run: it runs
    claim     Postgres dropped the lock with the connection: it runs, as the next attempt
    execute   nothing was recorded: it runs again, as the next attempt
    commit    the receipt: its stored reply is published again, nothing is executed
    reply     the receipt: the same bytes again, with the same message_id; a consumer drops the second

While a first attempt still runs elsewhere, the second waits for the lock, and then finds the receipt.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars

from schemas.errors import ErrorCode
from schemas.replies import RunReply
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
from worker.replies.replies import ReplyPublisher
from worker.sessions.store import ClaimedSession, FinishedTurn, SessionStore
from worker.settings import Settings

_BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

_log = structlog.get_logger()


class TurnTaker:
    """Takes requests, one after the other for each session; see the module's docstring."""

    def __init__(
        self, sessions: SessionStore, executors: Executors, replies: ReplyPublisher, settings: Settings
    ) -> None:
        self._sessions = sessions
        self._executors = executors
        self._replies = replies
        self._limit = settings.turn_limit
        self._slots = asyncio.Semaphore(settings.max_concurrent_turns)

    async def take(self, received: RequestDelivery) -> None:
        """Take one request from delivery to ack."""
        request, delivery = received.request, received.delivery
        with bound_contextvars(run_id=request.run_id, session_id=request.session_id, attempt=1):
            body = await self._answered(received)
            if body is not None and await self._replies.publish(body, request, delivery):
                await delivery.ack()

    async def _answered(self, received: RequestDelivery) -> bytes | None:
        """Return the answer, stored; or None, if the delivery died while there was none."""
        request, executor = received.request, self._executors.get(received.request.target)
        if (name := received.delivery.forbidden_property()) is not None:
            message = f"the AMQP property {name} must not be set on a request"
            return body_of(rejected(request, ErrorCode.UNSUPPORTED_PROPERTY, message, now=time.time()))
        tries = 0
        while received.alive:
            try:
                # A turn slot is held only by who works: not by a session that waits for another worker's lock.
                async with (
                    self._slots,
                    self._sessions.claimed(request, executor.history_runs if executor else 0) as claimed,
                ):
                    return await self._settled(claimed, received, executor)
            except SessionBusyElsewhere:
                _log.debug("session_busy_elsewhere", tries=tries)
            except (ClaimOutdated, StoreUnavailable) as error:
                # Whether a commit whose answer was lost took effect is what the next claim finds out.
                _log.warning("turn_claimed_again", reason=str(error), tries=tries)
            await asyncio.sleep(_BACK_OFF_SECONDS[min(tries, len(_BACK_OFF_SECONDS) - 1)])
            tries += 1
        return None

    async def _settled(self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor | None) -> bytes:
        """Return the answer to a claimed request, stored if it has to be."""
        match decide(claimed.request, claimed.claim, target_known=executor is not None):
            case Replay(reply):
                _log.info("turn_replayed")
                return reply
            case Refuse() as refusal:
                return await self._refused(claimed, refusal)
            case Execute() if executor is not None:
                return await self._executed(claimed, received, executor)
            case unexpected:
                raise AssertionError(f"decided {unexpected} for a target that is not known")

    async def _refused(self, claimed: ClaimedSession, refusal: Refuse) -> bytes:
        _log.info("turn_rejected", code=refusal.code.value, reason=refusal.message)
        reply = rejected(claimed.request, refusal.code, refusal.message, now=time.time(), retryable=refusal.retryable)
        body = body_of(reply)
        if refusal.depends_on_moment:
            await claimed.keep_answer(reply, body)
        return body

    async def _executed(self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor) -> bytes:
        """Take the turn and commit it. Users' code can't make this raise; only the database can."""
        request, claim = claimed.request, claimed.claim
        again = received.started or received.delivery.redelivered
        number = await claimed.count_attempt() if again else 1
        received.started = True
        bind_contextvars(attempt=number)
        turn = new_turn(request, claim.session, claim.history, attempt=number)
        started = time.time()
        outcome = await attempt(executor, turn, limit=self._limit, now=claim.database_time, deadline=request.deadline)
        timing = Timing(queued=received.delivery.queued_since, started=started, ended=time.time())
        try:
            reply, body = await self._committed(claimed, executor, turn, outcome, timing)
        except StatementRefused as error:
            _log.error("result_refused_by_postgres", reason=str(error))
            turn = new_turn(request, claim.session, claim.history, attempt=number)
            unstorable = failed(InvalidResult("the result can't be stored"))
            reply, body = await self._committed(claimed, executor, turn, unstorable, timing)
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
        left = FinishedTurn(
            name=executor.name,
            model_name=executor.model_name,
            session_state=outcome.session_state,
            member_runs=tuple(turn.member_runs),
        )
        try:
            await claimed.commit(reply, body, left)
        except SessionDeleted as error:
            reply = finished(claimed.request, turn, failed(error), number=claimed.next_turn, timing=timing)
            body = body_of(reply)
            await claimed.keep_answer(reply, body)
        return reply, body
