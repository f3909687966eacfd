"""The end of a turn, or of a request that is refused: its reply, and what is stored with it."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

from schemas.errors import ErrorCode
from schemas.replies import RunReply, RunStatus
from schemas.requests import RunRequest
from worker.decide import Refuse
from worker.errors import InvalidResult, SessionDeleted, StatementRefused
from worker.executors.attempt import Outcome, failed, new_turn
from worker.executors.batches import cut
from worker.executors.pauses import PauseRules
from worker.executors.turn import Executor, Turn, TurnContext, text_of
from worker.measures import UNMEASURED, Measures
from worker.operations import tracing
from worker.replies.answers import Timing, answered_with, body_of, finished, rejected, shortened
from worker.sessions.store import Answer, ClaimedSession
from worker.sessions.stored_runs import FinishedTurn
from worker.turns.poison import is_given_up
from worker.turns.spans import answered

LARGEST_REPLY_BYTES: Final = 15 * 2**20
"""RabbitMQ 4 refuses messages over 16 MiB, and with them the channel."""
LARGEST_RESULT_BYTES: Final = 32 * 2**20
"""Of a reply that is stored: all else on the lane waits while it is written, some seconds at worst (measured)."""

_LONGEST_LOGGED_CHARACTERS: Final = 500

_log = structlog.get_logger()


class Ending:
    """Stores how turns and requests end, in one schema."""

    def __init__(self, schema: str, measures: Measures = UNMEASURED, *, content_logged: bool = False) -> None:
        """`content_logged`: whether input and answer, shortened, are in the line that is logged of a turn."""
        self._measures = measures
        self._content_logged = content_logged
        self._schema = schema

    async def refused(self, claimed: ClaimedSession, refusal: Refuse, published: float | None) -> bytes:
        """Return the reply's bytes to a request that is refused, stored if it depends on the moment."""
        _log.info("turn_rejected", target=str(claimed.request.target), code=refusal.code.value, reason=refusal.message)
        # What is not stored is made again for a redelivery: from the message alone, not from the clock.
        now = time.time() if refusal.stored else published or 0.0
        reply = rejected(claimed.request, refusal.code, refusal.message, now=now, retryable=refusal.retryable)
        answered(reply)
        body = body_of(reply)
        if refusal.stored:
            await claimed.keep_answer(reply, body)
        self._count(claimed, reply)
        return body

    async def cancelled(self, claimed: ClaimedSession) -> bytes:
        """Return the reply's bytes to a request that was cancelled before it was started, stored."""
        _log.info("turn_cancelled", target=str(claimed.request.target), started=False)
        message = "the run was cancelled before it was started"
        reply = rejected(claimed.request, ErrorCode.CANCELLED, message, now=time.time(), status=RunStatus.CANCELLED)
        answered(reply)
        body = body_of(reply)
        await claimed.keep_answer(reply, body)
        self._count(claimed, reply)
        return body

    async def stored(
        self,
        claimed: ClaimedSession,
        executor: Executor,
        turn: Turn,
        outcome: Outcome,
        *,
        timing: Timing,
        redelivered: bool = False,
    ) -> tuple[RunReply, bytes]:
        """Commit a turn that was taken; return its reply, and the bytes of it that are stored and sent.

        Raises what ClaimedSession.commit does, but for what is the result's own fault: that ends as invalid_result.
        """
        request, claim = claimed.request, claimed.claim
        resumed, begun = turn.steps.journal.resumed_steps, time.perf_counter()
        try:
            reply, body = await self._committed(claimed, executor, turn, outcome, timing)
        except (StatementRefused, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # Postgres refuses it; or what users' code has left in the turn's fields is not what belongs there.
            # Of what users' code has left, an error's text may quote it.
            reason = str(error) if isinstance(error, StatementRefused) else type(error).__name__
            _log.error("result_refused", reason=reason, exc_info=error)
            turn = new_turn(claimed.asked, claim.session, TurnContext(claim.database_time), attempt=turn.attempt)
            unstorable = failed(InvalidResult("the result can't be stored"))
            reply = finished(request, turn, unstorable, number=None, timing=timing)
            body = body_of(reply)
            await claimed.keep_answer(reply, body, self._others(claimed, reply))
        _log.info(
            "turn_finished",
            **_told(request, reply),
            claim_seconds=round(claimed.claim_seconds, 6),
            commit_seconds=round(time.perf_counter() - begun, 6),
            reply_bytes=len(body),
            resumed_steps=resumed,
            joined=len(claim.joined),
            redelivered=redelivered,
            **(self._content(claimed, reply) if self._content_logged else {}),
        )
        self._count_turn(claimed, reply)
        answered(reply)
        return reply, body

    def found(self, claimed: ClaimedSession, body: bytes, timing: Timing) -> bool:
        """Count a turn whose stored answer is found by the next claim, since the commit's own answer was lost.

        Not if it is another worker's, who has counted it: whose it is its times tell.
        """
        reply = RunReply.model_validate_json(body)
        if (reply.created_at, reply.completed_at) != (int(timing.started), int(timing.ended)):
            return False
        self._count_turn(claimed, reply)
        return True

    @staticmethod
    def _content(claimed: ClaimedSession, reply: RunReply) -> dict[str, str]:
        shown = {"input": claimed.asked.text, "answer": text_of(reply.content)}
        return {name: cut(text, _LONGEST_LOGGED_CHARACTERS) for name, text in shown.items()}

    def _count_turn(self, claimed: ClaimedSession, reply: RunReply) -> None:
        self._count(claimed, reply)
        if not is_given_up(reply):
            seconds, queued_seconds = reply.metrics.duration, reply.metrics.queue_time
            self._measures.executed(claimed.request.target, seconds=seconds, queued_seconds=queued_seconds)

    def _count(self, claimed: ClaimedSession, reply: RunReply) -> None:
        """Count an answer that is there, as often as requests have it that joined the turn."""
        for _ in (claimed.request, *claimed.claim.joined):
            code = None if reply.error is None else reply.error.code
            self._measures.answered(claimed.request.target, reply.status, code)

    async def _committed(
        self, claimed: ClaimedSession, executor: Executor, turn: Turn, outcome: Outcome, timing: Timing
    ) -> tuple[RunReply, bytes]:
        reply = finished(claimed.request, turn, outcome, number=claimed.next_turn, timing=timing)
        body = body_of(reply)
        if len(body) > LARGEST_RESULT_BYTES:
            outcome = failed(InvalidResult(f"the reply has {len(body)} bytes; the limit is {LARGEST_RESULT_BYTES}"))
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
            details=turn.details,
        )
        sent = self._to_send(reply)
        try:
            with tracing.span("commit"):
                await claimed.commit(
                    reply,
                    body_of(sent),
                    left,
                    others=self._others(claimed, sent),
                    pause=None if outcome.pause is None else (outcome.pause, PauseRules.of(executor).seconds),
                    size_bytes=len(body),
                )
        except SessionDeleted as error:
            sent = self._to_send(finished(claimed.request, turn, failed(error), number=None, timing=timing))
            await claimed.keep_answer(sent, body_of(sent), self._others(claimed, sent))
        return sent, body_of(sent)

    def _others(self, claimed: ClaimedSession, sent: RunReply) -> list[Answer]:
        """Return the answers to the requests that joined the turn; together they are no larger than one may be."""
        joined = claimed.claim.joined
        if not joined:
            return []
        share_bytes = min(LARGEST_REPLY_BYTES, LARGEST_RESULT_BYTES // len(joined))
        replies = [self._to_send(answered_with(sent, request), share_bytes) for request in joined]
        return [Answer(request, reply, body_of(reply)) for request, reply in zip(joined, replies, strict=True)]

    def _to_send(self, reply: RunReply, largest_bytes: int = LARGEST_REPLY_BYTES) -> RunReply:
        return shortened(reply, largest_bytes=largest_bytes, schema=self._schema)


def _told(request: RunRequest, reply: RunReply) -> dict[str, Any]:
    """Return what the line that is logged of a turn has of its reply; seconds of its parts under names that say so."""
    metrics = reply.metrics
    return {
        "target": str(request.target),
        "status": reply.status.value,
        "code": None if reply.error is None else reply.error.code.value,
        "turn": reply.turn,
        **metrics.model_dump(exclude={"duration", "queue_time"}),
        "queue_seconds": metrics.queue_time,
        "execute_seconds": metrics.duration,
    }
