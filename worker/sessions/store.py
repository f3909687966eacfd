"""The session store: claim a session, commit a turn, keep an answer, give the session free."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from pydantic import SecretStr

from schemas.replies import RunReply
from schemas.requests import RunRequest
from worker.errors import (
    ClaimOutdated,
    ClaimUnreadable,
    LaneLost,
    SessionBusyElsewhere,
    SessionDeleted,
    StatementRefused,
)
from worker.executors.asked import asked_again, asked_together
from worker.executors.journal import StepRecord
from worker.executors.json_values import clean
from worker.executors.pauses import Origin, Pause
from worker.executors.turn import JsonObject, Usage
from worker.measures import UNMEASURED, CommitRefusal, Measures, Tried
from worker.sessions import statements
from worker.sessions.claim import Claim, Coalesced, Earlier, Pauses
from worker.sessions.lanes import Lane, LaneConnection
from worker.sessions.lock_table import LockBudget
from worker.sessions.statements import (
    BeginRow,
    Cancellation,
    ClaimRow,
    CoalesceRow,
    CommitOutcome,
    CommitRow,
    ContinueRow,
    PausesRow,
    ReceiptRow,
    StartRow,
    StepsRow,
    SummaryRow,
    Unsummarized,
    UnsummarizedRow,
    WholeRunsRow,
)
from worker.sessions.stored_runs import FinishedTurn, member_run_data, run_data, target_data
from worker.sessions.writes import Writes

_SUMMED: Final = {"input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls"}
"""The metrics that a session has the sums of."""

_REFUSALS: Final[dict[type[Exception], CommitRefusal]] = {
    ClaimOutdated: CommitRefusal.STALE,
    SessionDeleted: CommitRefusal.DELETED,
    StatementRefused: CommitRefusal.REFUSED,
    LaneLost: CommitRefusal.LANE_LOST,
}
"""Why a commit has stored nothing, by what it raises."""

_DEFAULT_LOCKS: Final = 6_400
"""Postgres's own defaults: 64 locks a transaction, 100 connections."""

LANES: Final = 2
"""More lanes made it slower: 2,740 turns/s with one or two, 2,130 with four (measured, 16 partitions)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request, and the bytes that are sent."""

    request: RunRequest
    reply: RunReply
    body: bytes


@dataclass(frozen=True, slots=True)
class ClaimedSession:
    """A session whose lock is held, and the one connection that may write it."""

    request: RunRequest
    claim: Claim
    _lane: LaneConnection
    _writes: Writes
    claim_seconds: float = 0.0
    """How long the claim took."""

    @property
    def next_turn(self) -> int:
        """The number that this turn has if it is committed."""
        return 1 if self.claim.session is None else self.claim.session.turn_seq + 1

    @property
    def asked(self) -> RunRequest:
        """What the turn is asked: the request's own, with those of the requests that joined it.

        Of one that continues another run, what that was asked.
        """
        origin = self.origin
        return asked_together(self.request, self.claim.joined) if origin is None else asked_again(self.request, origin)

    @property
    def origin(self) -> Origin | None:
        """What the turn began as, with what was decided since, if it goes on with a paused run."""
        pauses = self.claim.pauses
        if self.request.continues is None or pauses is None or pauses.pause is None:
            return None
        return pauses.pause.decided(self.request.decisions)

    def telling_of_loss(self, told: Callable[[], None]) -> AbstractContextManager[None]:
        """Have `told` called when the session's lock is lost during the block, or was before."""
        return self._lane.telling_of_loss(told)

    async def count_attempt(self) -> int:
        """Record that the run is started, and return how often it was."""
        return await self._lane.submit(statements.COUNT_ATTEMPT, StartRow(self.request.run_id, self.request.session_id))

    async def begin_attempt(self, *, outlived: int = 0) -> Earlier:
        """Record that a further attempt of the run begins, and return what the earlier ones left.

        So many of them this worker has outlived: they were not fruitless for what the run does.
        """
        row = BeginRow(self.request.run_id, self.request.session_id, self.request.fingerprint, outlived)
        return await self._lane.submit(statements.BEGIN_ATTEMPT, row)

    async def coalesce(self, candidates: Sequence[RunRequest]) -> Coalesced:
        """Store which of the candidates join the turn, and return them; of one that was joined before, those it has."""
        row = CoalesceRow(self.request, tuple(candidates))
        return await self._lane.submit(statements.COALESCE, row)

    async def pauses(self) -> Pauses:
        """Return what the request has to know of its session's paused runs."""
        row = PausesRow(self.request.session_id, self.request.continues)
        return await self._lane.submit(statements.READ_PAUSES, row)

    async def continue_paused(self) -> None:
        """Take over what the run has recorded that the request continues. Raises ClaimOutdated if that is gone."""
        request = self.request
        if request.continues is not None:
            row = ContinueRow(request.run_id, request.session_id, request.fingerprint, request.continues)
            await self._lane.submit(statements.CONTINUE_RUN, row)

    async def whole_runs(self, run_ids: Sequence[str]) -> tuple[JsonObject, ...]:
        """Return runs of the session as they are stored, each after its members' runs; see Turn.whole_history."""
        row = WholeRunsRow(self.request.session_id, tuple(run_ids))
        return await self._lane.submit(statements.READ_WHOLE_RUNS, row)

    async def uncount_attempt(self) -> None:
        """Record that the attempt did not cost this worker its life: it is not fruitless."""
        await self._lane.submit(statements.UNCOUNT_ATTEMPT, self.request.run_id)

    async def still_held(self) -> None:
        """Return if the session's lock was held a moment ago. Raises LaneLost if it is lost."""
        await self._lane.prove_alive()

    async def record_steps(self, steps: Sequence[StepRecord]) -> None:
        """Record steps of the turn. Raises StatementRefused, and LaneLost, where the session's lock is lost."""
        row = StepsRow(self.request.run_id, self.request.fingerprint, tuple(steps))
        await self._writes.persistently(lambda: self._lane.submit(statements.RECORD_STEPS, row))

    async def commit(
        self,
        reply: RunReply,
        body: bytes,
        turn: FinishedTurn,
        *,
        others: Sequence[Answer] = (),
        pause: tuple[Pause, float] | None = None,
        size_bytes: int = 0,
    ) -> None:
        """Store the turn in one transaction: session row, runs, receipt with the body that is sent.

        `others` are the answers to the requests that joined it; `size_bytes` is how large it is, where the body does
        not have all of it. A paused run leaves its `pause`, and waits for so many seconds to be continued.

        Raises SessionDeleted (nothing is stored, and nothing resurrected), ClaimOutdated (somebody else wrote the
        session or took the run_id: claim again), StatementRefused (what the turn left can't be stored), and
        LaneLost, after which only a new claim can tell whether it was stored.
        """
        session = self.claim.session
        row = CommitRow(
            session=self._session(reply, turn),
            turn_seq=None if session is None else session.turn_seq,
            runs=self._runs(reply, turn),
            answer=self._answer(reply, body, others, pause),
            size_bytes=max(size_bytes, len(body)) + sum(len(other.body) for other in others),
        )
        try:
            await self._writes.persistently(lambda: self._committed(row), what=Tried.COMMIT)
        except tuple(_REFUSALS) as error:
            reason = next(reason for kind, reason in _REFUSALS.items() if isinstance(error, kind))
            self._writes.measures.commit_refused(reason)
            raise

    async def _committed(self, row: CommitRow) -> None:
        begun = time.perf_counter()
        outcome = await self._lane.submit(statements.COMMIT, row)
        self._writes.measures.committed(time.perf_counter() - begun)
        if outcome is CommitOutcome.DELETED:
            raise SessionDeleted("the session was deleted while the turn ran; nothing was stored")
        if outcome is CommitOutcome.STALE:
            raise ClaimOutdated("the session was written by another program since the claim")

    async def keep_answer(self, reply: RunReply, body: bytes, others: Sequence[Answer] = ()) -> None:
        """Store an answer without a run: of a refusal that depended on the moment, or for a deleted session."""
        row = self._answer(reply, body, others)
        await self._writes.persistently(lambda: self._lane.submit(statements.STORE_RECEIPT, row))

    def _session(self, reply: RunReply, turn: FinishedTurn) -> dict[str, Any]:
        request, target = self.asked, self.request.target
        return {
            "session_id": request.session_id,
            "session_type": target.type.value,
            f"{target.type.value}_id": target.id,
            "user_id": request.user_id,
            "session_state": turn.session_state,
            "session_name": turn.session_name,
            "metadata": clean(request.metadata),
            "usage": reply.metrics.model_dump(include=_SUMMED),
            "started": reply.created_at,
            "ended": reply.completed_at,
            **target_data(target, turn.name, turn.model_name),
        }

    def _runs(self, reply: RunReply, turn: FinishedTurn) -> list[dict[str, Any]]:
        """Return the runs in the order of their indexes: a member's run comes before the run it belongs to."""
        request = self.asked
        members = [
            {"type": member.member.type.value, "data": member_run_data(request, member)} for member in turn.member_runs
        ]
        own = run_data(request, reply, turn, answers=[joined.run_id for joined in self.claim.joined])
        return [*members, {"type": request.target.type.value, "data": own}]

    def _answer(
        self, reply: RunReply, body: bytes, others: Sequence[Answer], pause: tuple[Pause, float] | None = None
    ) -> ReceiptRow:
        joined = tuple(ReceiptRow(_receipt(other.request, other.reply), other.body) for other in others)
        left, seconds = pause or (None, 0.0)
        text = None if left is None else left.model_dump_json().encode()
        return ReceiptRow(_receipt(self.request, reply), body, joined, text, seconds)


class SessionStore:
    """The sessions of one schema, over a few lanes."""

    def __init__(
        self, url: SecretStr, schema: str, *, locks: int = _DEFAULT_LOCKS, measures: Measures = UNMEASURED
    ) -> None:
        """`locks` is how many locks Postgres has room for."""
        self.lock_budget = LockBudget(locks)
        self._measures = measures
        self._writes = Writes(measures)
        self._lanes = [Lane(url, schema, number, measures) for number in range(LANES)]

    @property
    def first_lane(self) -> Lane:
        """The lane that also holds this worker's membership of its fleet."""
        return self._lanes[0]

    @property
    def alive(self) -> bool:
        """Whether every lane has a connection."""
        return all(lane.alive for lane in self._lanes)

    @property
    def lanes_alive(self) -> dict[int, bool]:
        """Whether each lane has a connection, by its number."""
        return {lane.number: lane.alive for lane in self._lanes}

    @property
    def connected_since(self) -> float:
        """When the last lane had a connection again, by the monotonic clock; no time at all if none was ever lost."""
        return max(lane.connected_since for lane in self._lanes)

    @property
    def has_room(self) -> bool:
        """Whether no turn waits for room on Postgres's disk to be stored."""
        return self._writes.have_room

    async def open(self) -> None:
        """Connect every lane. Raises StartupError or StoreUnavailable."""
        for lane in self._lanes:
            await lane.open()

    async def run(self) -> None:
        """Serve the lanes until the task is cancelled; the locks go with the connections."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(lane.run())

    @asynccontextmanager
    async def claimed(
        self, request: RunRequest, history_runs: int | None, *, summarized: bool = False
    ) -> AsyncIterator[ClaimedSession]:
        """Hold the session's lock, with what was read under it: `summarized` asks for the session's summary.

        Raises SessionBusyElsewhere if another worker holds it, StoreUnavailable or LaneLost if Postgres can't. The
        caller must not claim a session that it already holds: a lock is re-entrant within its connection. After the
        block the session is unlocked as soon as the lane comes to it.
        """
        row = ClaimRow(
            request.run_id, request.session_id, history_runs, summarized, request.fingerprint, request.user_id
        )
        await self.lock_budget.take()
        begun = time.perf_counter()
        try:
            lane = self._lane_of(request.session_id).connection()
            claiming = lane.post(statements.CLAIM, row)
        except BaseException:
            self.lock_budget.give_back()
            raise
        try:
            claim = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            if lane.withdraw(claiming):
                self.lock_budget.give_back()
            else:
                claiming.add_done_callback(partial(self._given_up, lane, request.session_id))
            raise
        except BaseException as error:
            if isinstance(error, SessionBusyElsewhere):
                self._measures.claimed(time.perf_counter() - begun)
            self._given_up(lane, request.session_id, claiming)
            raise
        seconds = time.perf_counter() - begun
        self._measures.claimed(seconds)
        try:
            yield ClaimedSession(request=request, claim=claim, _lane=lane, _writes=self._writes, claim_seconds=seconds)
        finally:
            _unlock(lane, request.session_id, self.lock_budget.give_back)

    def _given_up(self, lane: LaneConnection, session_id: str, claiming: asyncio.Future[Claim]) -> None:
        """Unlock a session whose claim has run and is not wanted, or can't be read; only if it has locked.

        A lock that is taken twice, for the turn and beside it, must be given back twice, and not once more: the turn
        would go on without it, and another worker beside it.
        """
        error = claiming.exception()
        if error is None or isinstance(error, ClaimUnreadable):
            _unlock(lane, session_id, self.lock_budget.give_back)
        else:
            self.lock_budget.give_back()  # a claim that fails takes its lock back, or has lost it with the lane

    async def uncount_attempt(self, request: RunRequest) -> None:
        """Record that this worker has outlived an attempt of the run. It needs no claim. Raises StoreUnavailable."""
        await self._lane_of(request.session_id).connection().submit(statements.UNCOUNT_ATTEMPT, request.run_id)

    async def cancel(self, cancellation: Cancellation) -> None:
        """Record that a run is not wanted any more, and have all workers told. Raises StoreUnavailable."""
        lane = self._lane_of(cancellation.session_id).connection()
        await lane.submit(statements.CANCEL_RUN, cancellation)

    async def cancelled(self, run_ids: Sequence[str]) -> frozenset[Cancellation]:
        """Return what was said of these runs. Raises StoreUnavailable."""
        return await self.first_lane.connection().submit(statements.CANCELLED_RUNS, tuple(run_ids))

    async def unsummarized(self, session_id: str, *, after: int | None = None) -> Unsummarized | None:
        """Return what the session's summary lacks, in the runs after a run_index; None if there is no such session.

        It needs no claim.
        """
        row = UnsummarizedRow(session_id, after)
        return await self._lane_of(session_id).connection().submit(statements.RUNS_TO_SUMMARIZE, row)

    async def store_summary(
        self, session_id: str, text: str, *, up_to: int, usage: Usage, topics: Sequence[str] = ()
    ) -> None:
        """Store a summary of the session's runs up to a run_index. It needs no claim: an older one changes nothing."""
        summary: dict[str, Any] = {"summary": text, "updated_at": datetime.now(UTC).isoformat()}
        if topics:
            summary["topics"] = list(topics)
        used = asdict(usage) | {"total_tokens": usage.input_tokens + usage.output_tokens}
        row = SummaryRow(session_id, summary, up_to, used)
        await self._lane_of(session_id).connection().submit(statements.STORE_SUMMARY, row)

    def _lane_of(self, session_id: str) -> Lane:
        return self._lanes[zlib.crc32(session_id.encode()) % len(self._lanes)]


def _receipt(request: RunRequest, reply: RunReply) -> dict[str, Any]:
    target = request.target
    receipt: dict[str, Any] = {
        "run_id": request.run_id,
        "session_id": request.session_id,
        "user_id": request.user_id,
        "target_type": target.type.value,
        "target_id": target.id,
        "fingerprint": request.fingerprint.hex(),
        "status": reply.status.value,
    }
    if request.continues is not None:
        receipt["continues"] = request.continues
    return receipt


def _unlock(lane: LaneConnection, session_id: str, then: Callable[[], None]) -> None:
    """Have the session unlocked, beside the reply and the session's next turn, and then call `then`.

    That turn may lock it before: the lock counts, and is free when both are undone. It reads what is committed, since
    the commit has returned.
    """

    def unlocked(unlock: asyncio.Future[None]) -> None:
        if not unlock.cancelled() and (error := unlock.exception()) is not None:
            # A lock that can't be given back would keep the session from every other worker.
            lane.abandon(f"an unlock failed: {error}")
        then()

    try:
        unlock = lane.post(statements.UNLOCK, session_id)
    except LaneLost:  # and with it the lock
        then()
    else:
        unlock.add_done_callback(unlocked)
