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

A run that its user cancels (`{prefix}.control`) stops at its next await, and is stored as CANCELLED with what it had;
one that was not started is answered CANCELLED in its place.

A turn that has come to its end keeps its result while Postgres is away, also when its delivery is taken back; see
kept_results.

A request whose attempts come to nothing (no step recorded, the worker gone) is suspected of killing its workers: its
last attempts run alone, so that nothing dies with it; after MAX_ATTEMPTS it is stored and answered as ERROR, and kept
with the dead letters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from pydantic_core import from_json
from structlog.contextvars import bound_contextvars

from schemas.ids import Target
from schemas.replies import RunReply, RunStatus
from worker.decide import Cancel, Execute, Refuse, Replay, decide
from worker.errors import (
    ClaimOutdated,
    LaneLost,
    RequestRefused,
    SessionBusyElsewhere,
    StoreUnavailable,
)
from worker.executors.attempt import Outcome, attempt
from worker.executors.model_calls import model_calls_told
from worker.executors.registry import Executors
from worker.executors.turn import Executor, Turn
from worker.intake.delivery import Delivery, RequestDelivery
from worker.measures import UNMEASURED, Measures, Tried
from worker.operations.tracing import Stretch, note
from worker.replies.answers import Timing
from worker.replies.in_order import RepliesInOrder
from worker.sessions.store import ClaimedSession, SessionStore
from worker.sessions.summaries import Summaries
from worker.settings import Settings
from worker.turns.coalescing import coalesced
from worker.turns.company import Company, Place
from worker.turns.ending import Ending
from worker.turns.hold import Hold
from worker.turns.kept_results import KeptResult, KeptResults
from worker.turns.pausing import with_pauses
from worker.turns.poison import PoisonRules, given_up, given_up_before, is_given_up, spent_headers
from worker.turns.running import Run, RunningRuns
from worker.turns.spans import attempted, invoking, processing
from worker.turns.starts import begins_recorded, begun_turn, counted_if_outlived, outlived, start_recorded
from worker.turns.telling import PublishEvent, tell_answer

_MOST_OUTDATED_CLAIMS: Final = 5
_BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_TOLD_EVERY_TRIES: Final = 60
"""Postgres may be away for long."""

Bury = Callable[[Delivery, RequestRefused, dict[str, Any]], Awaitable[None]]
"""Keep a copy of a delivery with the dead letters, with headers beside those that say why, until it is confirmed."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The reply's bytes, and whether they are those of a turn, taken now or before."""

    body: bytes
    of_turn: bool
    given_up: RunReply | None = None
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
        running: RunningRuns,
        ending: Ending,
        publish: PublishEvent,
        bury: Bury,
        measures: Measures = UNMEASURED,
    ) -> None:
        self._measures = measures
        self._sessions = sessions
        self._summaries = summaries
        self._executors = executors
        self._replies = replies
        self._running = running
        self._bury = bury
        self._limit = settings.turn_limit
        self._ending = ending
        self._publish = publish
        self._poison = PoisonRules(settings.max_attempts)
        self._company = Company()
        self._kept = KeptResults()
        self._slots = asyncio.Semaphore(settings.max_concurrent_turns)

    async def take(self, received: RequestDelivery) -> None:
        """Take one request from delivery to its stored answer; its reply and ack follow by themselves, in order."""
        request = received.request
        if received.judged is not None:
            await asyncio.wait([received.judged])
        if received.settled:
            return
        with bound_contextvars(run_id=request.run_id, session_id=request.session_id, attempt=1), processing(received):
            executor = self._executors.get(request.target)
            answer = await self._answered(received, executor)
            if not received.alive:
                note({"teamturn.given_away": True})
            if answer is None and received.outlived:
                await outlived(self._sessions, received)
            if answer is not None:
                # Not for a refusal: the session may be somebody else's.
                summarized = executor if answer.of_turn else None
                if (reply := answer.given_up) is not None and reply.error is not None:
                    why = RequestRefused(reply.error.code, reply.error.message)
                    await self._bury(received.delivery, why, spent_headers(reply))
                then = partial(self._want_summary, request.session_id, summarized)
                self._replies.send(answer.body, received, then=then)

    def _want_summary(self, session_id: str, executor: Executor | None) -> None:
        if executor is not None and executor.summarizer is not None:
            told = partial(self._measures.model_called, executor.target)
            self._summaries.want(session_id, executor.summarizer, model_called=told)

    async def _answered(self, received: RequestDelivery, executor: Executor | None) -> _Answer | None:
        """Return the answer, stored; or None, if the delivery died while there was none, and no result either."""
        hold = Hold(self._sessions, received.request)
        try:
            with self._running.entered(received.request) as run:
                return await self._answered_under(hold, run, received, executor)
        finally:
            await hold.release()

    async def _answered_under(
        self, hold: Hold, run: Run, received: RequestDelivery, executor: Executor | None
    ) -> _Answer | None:
        request, tries, claiming = received.request, 0, Stretch("claim")
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
                    await hold.release()
                    claiming.end({"teamturn.tries": tries + 1})
                    with hold.over(claimed):
                        answer = await self._settled(claimed, run, received, executor)
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
            run.wait()
            await asyncio.sleep(_BACK_OFF_SECONDS[min(tries, len(_BACK_OFF_SECONDS) - 1)])
            tries += 1
            self._measures.retried(Tried.CLAIM)
            claiming.begin()
        return None

    async def _settled(
        self, claimed: ClaimedSession, run: Run, received: RequestDelivery, executor: Executor | None
    ) -> _Answer | None:
        """Return the answer to a claimed request, stored if it has to be; None if it is somebody else's to find."""
        claimed = await with_pauses(claimed, executor)
        kept = self._kept.find(claimed.request)
        if kept is None and not received.alive:
            return None  # given away while it waited for a slot or for its claim
        match decide(
            claimed.request,
            claimed.claim if kept is None else kept.seen_in(claimed.claim),
            target_known=executor is not None,
            forbidden_property=received.delivery.forbidden_property(),
            busy=received.busy,
        ):
            case Replay(reply):
                _log.info(
                    "turn_replayed", target=str(claimed.request.target), redelivered=received.delivery.redelivered
                )
                note({"teamturn.replayed": True})
                tell_answer(self._publish, claimed.request, reply, again=True)
                own = isinstance(kept, KeptResult) and self._ending.found(kept.of(claimed), reply, kept.timing)
                return self._replayed(reply, received.delivery, own=own)
            case Refuse() as refusal:
                body = await self._ending.refused(claimed, refusal, received.delivery.published)
                tell_answer(self._publish, claimed.request, body)
                return _Answer(body, of_turn=False)
            case Cancel():
                body = await self._ending.cancelled(claimed)
                tell_answer(self._publish, claimed.request, body)
                return _Answer(body, of_turn=False)
            case Execute() if executor is not None:
                if isinstance(kept, KeptResult):
                    return await self._stored(kept.of(claimed), received, executor, kept)
                if kept is not None and kept.is_newest_in(claimed.claim):
                    claimed = await kept.recorded(claimed)
                self._kept.drop(claimed.request)
                return await self._executed(claimed, run, received, executor) if received.alive else None
            case unexpected:
                raise AssertionError(f"decided {unexpected} for a target that is not known")

    async def _executed(
        self, claimed: ClaimedSession, run: Run, received: RequestDelivery, executor: Executor
    ) -> _Answer:
        """Take the turn and commit it. Users' code can't make this raise; only the database can."""
        started = time.time()
        claimed = await coalesced(claimed, run, received)
        fruitless = claimed.claim.fruitless - received.outlived
        if self._poison.give_up(fruitless):
            turn, outcome = await given_up(claimed)
        else:
            async with self._company.joined(alone=self._poison.run_alone(fruitless)) as place:
                if claimed.claim.cancelled:
                    run.cancel()
                turn, outcome = await self._attempted(claimed, run, received, executor, place)
        timing = Timing(queued=received.delivery.queued_since, started=started, ended=time.time())
        result = KeptResult(claimed.claim, turn, outcome, timing)
        try:
            with counted_if_outlived(received, turn):
                return await self._stored(claimed, received, executor, result)
        except LaneLost:
            self._kept.keep(claimed.request, result)
            raise

    async def _attempted(
        self, claimed: ClaimedSession, run: Run, received: RequestDelivery, executor: Executor, place: Place
    ) -> tuple[Turn, Outcome]:
        request, claim = claimed.request, claimed.claim
        begun = begins_recorded(claimed, received)
        turn = await begun_turn(claimed, received, executor, self._publish)
        turn.steps.journal.recorded_first = place.share
        with counted_if_outlived(received, turn), self._kept.steps_kept(request, turn):
            async with start_recorded(claimed, turn, already=begun):
                with (
                    run.attempted(turn.steps.journal),
                    self._measured(turn, request.target),
                    invoking(executor, turn) as invoked,
                ):
                    outcome = await attempt(
                        executor, turn, limit=self._limit, now=claim.database_time, deadline=claimed.asked.deadline
                    )
                    attempted(invoked, turn, outcome)
        return turn, outcome

    @contextmanager
    def _measured(self, turn: Turn, target: Target) -> Iterator[None]:
        """Have it counted what the attempt's models use, and what it is given from the journal."""
        try:
            with model_calls_told(partial(self._measures.model_called, target)):
                yield
        finally:
            self._measures.steps_resumed(turn.steps.journal.resumed_steps)

    async def _stored(
        self, claimed: ClaimedSession, received: RequestDelivery, executor: Executor, result: KeptResult
    ) -> _Answer:
        turn, redelivered = result.turn, received.delivery.redelivered
        reply, body = await self._ending.stored(
            claimed, executor, turn, result.outcome, timing=result.timing, redelivered=redelivered
        )
        if turn.events.watched:  # a reply can be large
            turn.events.tell("run_finished", reply=reply.model_dump(mode="json"))
        else:  # of one that is given up there is no attempt now, and its last one may have told something
            tell_answer(self._publish, claimed.request, body, again=True)
        return _Answer(body, of_turn=True, given_up=reply if is_given_up(reply) else None)

    def _replayed(self, body: bytes, delivery: Delivery, *, own: bool) -> _Answer:
        """Return a stored reply as the answer; whether its request was kept with the dead letters, nobody knows.

        `own`: it is that of a commit of just now, whose answer was lost.
        """
        reply = from_json(body)
        if (answered_by := reply.get("answered_by")) is not None:
            note({"teamturn.answered_by": answered_by})
        if not own and (delivery.redelivered or answered_by is None):
            self._measures.replayed()  # else it joined a turn, and finds its answer there for the first time
        before = given_up_before(body) if delivery.redelivered else None
        return _Answer(body, of_turn=reply["status"] != RunStatus.REJECTED, given_up=before)
