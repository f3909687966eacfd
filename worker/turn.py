"""The story: one request, from delivery to acknowledgement.

    deliver   RabbitMQ hands the request to the session's mailbox; it is unacknowledged until the end
    claim     the session's advisory lock, then what is stored: receipt, session row, the last runs
    decide    replay, execute or refuse
    execute   the executor takes the turn; each model call and tool call is a step, recorded in the session's journal
    commit    session row, run rows, receipt with the reply's bytes: one transaction, on the lock's own connection
    reply     exactly the stored bytes, with a publisher confirm; the session's next turn is taken meanwhile
    ack       the request is done; a summary of the session, where its team keeps one, is written after that

The unacknowledged request is the outbox: nothing is acknowledged before its reply is confirmed. Whoever holds the
delivery replies. What a redelivered request finds, when its worker died after

    delivery  no run: it runs
    claim     Postgres dropped the lock with the connection: it runs
    a step    the journal: the turn goes on behind its last recorded step, as the next attempt
    a call    that it was started: one that may be repeated is made again, any other ends the turn as `step_uncertain`
    commit    the receipt: its stored reply is published again, nothing is executed
    reply     the receipt: the same bytes again, with the same message_id; a consumer drops the second

While a first attempt still runs elsewhere, the second waits for the lock, and then finds the receipt.

A turn that has come to its end keeps its result while Postgres is away, also when its delivery is taken back; see
kept_results.

A request whose attempts come to nothing (no step recorded, the worker gone) is suspected of killing its workers: its
last attempts run alone, so that nothing dies with it; after MAX_ATTEMPTS it is stored and answered as ERROR, and kept
with the dead letters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog
from pydantic_core import from_json
from structlog.contextvars import bound_contextvars

from schemas.errors import ErrorCode
from schemas.replies import RunReply, RunStatus
from worker.company import Company
from worker.decide import Execute, Refuse, Replay, decide
from worker.errors import (
    AttemptsExhausted,
    ClaimOutdated,
    InvalidResult,
    LaneLost,
    RequestRefused,
    SessionBusyElsewhere,
    SessionDeleted,
    StatementRefused,
    StoreUnavailable,
)
from worker.executors.attempt import Outcome, attempt, failed, new_turn
from worker.executors.registry import Executors
from worker.executors.turn import Executor, Turn, TurnContext, Usage
from worker.intake.delivery import Delivery, RequestDelivery
from worker.intake.forwarding import ATTEMPTS_HEADER, STEPS_HEADER, TOKENS_HEADER
from worker.kept_results import KeptResult, KeptResults
from worker.replies.answers import Timing, body_of, finished, rejected, shortened
from worker.replies.in_order import RepliesInOrder
from worker.sessions.store import ClaimedSession, SessionStore
from worker.sessions.stored_runs import FinishedTurn
from worker.sessions.summaries import Summaries
from worker.settings import Settings
from worker.starts import begun_turn, counted_if_outlived, finished_steps, outlived, start_recorded

_LARGEST_REPLY_BYTES: Final = 15 * 2**20
"""RabbitMQ 4 refuses messages over 16 MiB, and with them the channel. A larger reply goes without its answer."""
_LARGEST_RESULT_BYTES: Final = 32 * 2**20
"""Of a reply that is stored: all else on the lane waits while it is written, some seconds at worst (measured)."""
_MOST_OUTDATED_CLAIMS: Final = 5
_BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_TOLD_EVERY_TRIES: Final = 60
"""Postgres may be away for long."""

_ALONE_AFTER_FRUITLESS: Final = 2

Bury = Callable[[Delivery, RequestRefused, dict[str, Any]], Awaitable[None]]
"""Keep a copy of a delivery with the dead letters, with headers beside those that say why, until it is confirmed."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The reply's bytes, and whether they are those of a turn, taken now or before."""

    body: bytes
    of_turn: bool
    exhausted: RunReply | None = None
    """The reply, where the request is to be kept with the dead letters."""


class TurnTaker:
    """Takes requests, one after the other for each session; see the module's docstring."""

    def __init__(
        self,
        sessions: SessionStore,
        executors: Executors,
        replies: RepliesInOrder,
        summaries: Summaries,
        settings: Settings,
        *,
        bury: Bury,
    ) -> None:
        self._sessions = sessions
        self._summaries = summaries
        self._executors = executors
        self._replies = replies
        self._bury = bury
        self._limit = settings.turn_limit
        self._schema = settings.db_schema
        self._max_attempts = settings.max_attempts
        # The last attempt at least: what dies with another is then never called poison for it.
        self._alone_from = max(1, min(_ALONE_AFTER_FRUITLESS, settings.max_attempts - 1))
        self._company = Company()
        self._kept = KeptResults()
        self._slots = asyncio.Semaphore(settings.max_concurrent_turns)

    async def take(self, received: RequestDelivery) -> None:
        """Take one request from delivery to its stored answer; its reply and ack follow by themselves, in order."""
        request = received.request
        with bound_contextvars(run_id=request.run_id, session_id=request.session_id, attempt=1):
            executor = self._executors.get(request.target)
            answer = await self._answered(received, executor)
            if answer is None and received.outlived:
                await outlived(self._sessions, received)
            if answer is not None:
                # Not for a refusal: the session may be somebody else's.
                summarized = executor if answer.of_turn else None
                if answer.exhausted is not None:
                    await self._keep_with_the_dead(received.delivery, answer.exhausted)
                then = partial(self._want_summary, request.session_id, summarized)
                self._replies.send(answer.body, received, then=then)

    def _want_summary(self, session_id: str, executor: Executor | None) -> None:
        if executor is not None and executor.summarizer is not None:
            self._summaries.want(session_id, executor.summarizer)

    async def _answered(self, received: RequestDelivery, executor: Executor | None) -> _Answer | None:
        """Return the answer, stored; or None, if the delivery died while there was none, and no result either."""
        request, tries = received.request, 0
        while received.alive or self._kept.find(request) is not None:
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
                    answer = await self._settled(claimed, received, executor)
                    self._kept.drop(request)
                    return answer
            except SessionBusyElsewhere:
                _log.debug("session_busy_elsewhere", tries=tries)
            except StoreUnavailable as error:
                # Whether a commit whose answer was lost took effect is what the next claim finds out.
                if tries % _TOLD_EVERY_TRIES == 0:
                    _log.warning("turn_claimed_again", reason=str(error), tries=tries)
            except ClaimOutdated as error:
                _log.warning("turn_claimed_again", reason=str(error), tries=tries)
                received.outdated += 1
                self._kept.drop(request)
            await asyncio.sleep(_BACK_OFF_SECONDS[min(tries, len(_BACK_OFF_SECONDS) - 1)])
            tries += 1
        return None

    async def _settled(
        self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor | None
    ) -> _Answer | None:
        """Return the answer to a claimed request, stored if it has to be; None if it is somebody else's to find."""
        kept = self._kept.find(claimed.request)
        if kept is None and not received.alive:
            return None  # given away while it waited for a slot or for its claim
        match decide(
            claimed.request,
            claimed.claim if kept is None else kept.seen_in(claimed.claim),
            target_known=executor is not None,
            forbidden_property=received.delivery.forbidden_property(),
        ):
            case Replay(reply):
                _log.info("turn_replayed")
                return _replayed(reply, received.delivery)
            case Refuse() as refusal:
                return _Answer(await self._refused(claimed, received, refusal), of_turn=False)
            case Execute() if executor is not None:
                if isinstance(kept, KeptResult):
                    as_it_was = replace(claimed, claim=kept.claim)
                    return await self._stored(as_it_was, executor, kept.turn, kept.outcome, kept.timing)
                if kept is not None and kept.is_newest_in(claimed.claim):
                    claimed = await kept.recorded(claimed)
                self._kept.drop(claimed.request)
                return await self._executed(claimed, received, executor) if received.alive else None
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

    async def _executed(self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor) -> _Answer:
        """Take the turn and commit it. Users' code can't make this raise; only the database can."""
        request, claim = claimed.request, claimed.claim
        started = time.time()
        fruitless = claim.fruitless - received.outlived
        if fruitless >= self._max_attempts:
            turn, outcome = await self._given_up(claimed)
        else:
            alone = fruitless >= self._alone_from
            async with self._company.joined(alone=alone) as place:
                again = received.attempts > 0 or claim.attempts > 0 or received.delivery.redelivered
                turn = await begun_turn(claimed, received, journal=getattr(executor, "journal", True))
                turn.steps.journal.recorded_first = place.share
                with counted_if_outlived(received, turn), self._kept.steps_kept(request, turn):
                    async with start_recorded(claimed, turn, already=again):
                        outcome = await attempt(
                            executor, turn, limit=self._limit, now=claim.database_time, deadline=request.deadline
                        )
        timing = Timing(queued=received.delivery.queued_since, started=started, ended=time.time())
        try:
            with counted_if_outlived(received, turn):
                return await self._stored(claimed, executor, turn, outcome, timing)
        except LaneLost:
            self._kept.keep(request, KeptResult(claim, turn, outcome, timing))
            raise

    async def _given_up(self, claimed: ClaimedSession) -> tuple[Turn, Outcome]:
        """Return the turn of a request that is taken for what kills its workers, without executing it."""
        claim = claimed.claim
        steps = finished_steps(await claimed.begin_attempt())
        turn = new_turn(claimed.request, claim.session, TurnContext(claim.database_time), attempt=claim.attempts)
        turn.usage = Usage(
            input_tokens=sum(step.input_tokens for step in steps),
            output_tokens=sum(step.output_tokens for step in steps),
            model_requests=sum("model.request#" in step.key for step in steps),
            tool_calls=sum("tool:" in step.key for step in steps),
        )
        message = f"{claim.fruitless} of {claim.attempts} attempts came to nothing: their workers died"
        return turn, failed(AttemptsExhausted(message))

    async def _stored(
        self, claimed: ClaimedSession, executor: Executor, turn: Turn, outcome: Outcome, timing: Timing
    ) -> _Answer:
        """Commit a turn that was taken, and return its answer."""
        request, claim = claimed.request, claimed.claim
        try:
            reply, body = await self._committed(claimed, executor, turn, outcome, timing)
        except (StatementRefused, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # Postgres refuses it; or what users' code has left in the turn's fields is not what belongs there.
            _log.error("result_refused", reason=str(error), exc_info=error)
            turn = new_turn(request, claim.session, TurnContext(claim.database_time), attempt=turn.attempt)
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
        return _Answer(body, of_turn=True, exhausted=reply if _is_exhausted(reply) else None)

    async def _keep_with_the_dead(self, delivery: Delivery, reply: RunReply) -> None:
        assert reply.error is not None  # noqa: S101 - for the type checker: it is why
        spent = {
            ATTEMPTS_HEADER: reply.attempt,
            STEPS_HEADER: reply.metrics.model_requests + reply.metrics.tool_calls,
            TOKENS_HEADER: reply.metrics.total_tokens,
        }
        await self._bury(delivery, RequestRefused(reply.error.code, reply.error.message), spent)

    async def _committed(
        self, claimed: ClaimedSession, executor: Executor, turn: Turn, outcome: Outcome, timing: Timing
    ) -> tuple[RunReply, bytes]:
        reply = finished(claimed.request, turn, outcome, number=claimed.next_turn, timing=timing)
        body = body_of(reply)
        if len(body) > _LARGEST_RESULT_BYTES:
            outcome = failed(InvalidResult(f"the reply has {len(body)} bytes; the limit is {_LARGEST_RESULT_BYTES}"))
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
        sent = self._to_send(reply)
        try:
            await claimed.commit(reply, body_of(sent), left, size_bytes=len(body))
        except SessionDeleted as error:
            sent = self._to_send(finished(claimed.request, turn, failed(error), number=None, timing=timing))
            await claimed.keep_answer(sent, body_of(sent))
        return sent, body_of(sent)

    def _to_send(self, reply: RunReply) -> RunReply:
        return shortened(reply, largest_bytes=_LARGEST_REPLY_BYTES, schema=self._schema)


def _replayed(body: bytes, delivery: Delivery) -> _Answer:
    """Return a stored reply as the answer; whether its request was kept with the dead letters, nobody knows."""
    status = from_json(body)["status"]
    reply = RunReply.model_validate_json(body) if status == RunStatus.ERROR and delivery.redelivered else None
    exhausted = reply if reply is not None and _is_exhausted(reply) else None
    return _Answer(body, of_turn=status != RunStatus.REJECTED, exhausted=exhausted)


def _is_exhausted(reply: RunReply) -> bool:
    return reply.error is not None and reply.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
