"""The statements that go through lanes: how rows become arguments, and records our own values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg
from pydantic_core import from_json, to_json

import sql
from schemas.ids import SessionType, Target
from schemas.requests import RunRequest
from worker.errors import ClaimOutdated, ClaimUnreadable, SessionBusyElsewhere, StatementRefused
from worker.executors.journal import StepRecord, StepState
from worker.executors.pauses import Pause
from worker.executors.turn import PastRun
from worker.sessions.claim import Claim, Coalesced, Earlier, Pauses, Receipt, SessionRow
from worker.sessions.database import worker_name
from worker.sessions.lanes import Statement
from worker.sessions.stored_runs import past_run

JsonObject = dict[str, Any]

MOST_RUNS_SUMMARIZED: Final = 20
"""At once: what a summary lacks beyond them is the next one's."""
MOST_RUNS_MADE_UP_FOR: Final = 40
"""Of those that a summary lacks, the last so many; older ones it never gets."""
_MOST_HISTORY_BYTES: Final = 16 * 2**20
"""As in the claim."""
_MOST_BYTES_READ: Final = 4 * 2**20
"""Of the runs to summarize, as they are shown: claims and commits wait for the lane meanwhile."""


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One request to claim: whose session is locked and what is read."""

    run_id: str
    session_id: str
    history_runs: int | None
    summarized: bool = False
    """Whether the session's summary is read, and with it the runs that it does not cover yet."""
    fingerprint: bytes = b""
    """The request's; its journal is found by it."""
    user_id: str | None = None
    """Whose it is: only they can have cancelled it."""


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One answer to keep: its receipt, and the reply's bytes."""

    receipt: JsonObject
    reply: bytes
    others: tuple[ReceiptRow, ...] = ()
    """Those of the requests that joined it."""
    pause: bytes | None = None
    """Of a paused run: what it leaves to the one that goes on with it, as JSON."""
    pause_seconds: float = 0.0
    """How long it waits for that."""


@dataclass(frozen=True, slots=True)
class CommitRow:
    """One turn to commit: the session's new values, the runs to append, the answer."""

    session: JsonObject
    turn_seq: int | None
    runs: list[JsonObject]
    answer: ReceiptRow
    size_bytes: int
    """About how large it is."""


class CommitOutcome(StrEnum):
    """What became of a commit."""

    COMMITTED = "committed"
    DELETED = "deleted"
    STALE = "stale"


def _claim_arguments(rows: Sequence[ClaimRow]) -> Sequence[Any]:
    requests = [
        {
            "position": position,
            "run_id": row.run_id,
            "session_id": row.session_id,
            "user_id": row.user_id,
            "history_runs": row.history_runs,
            "summarized": row.summarized,
            "request": row.fingerprint.hex(),
        }
        for position, row in enumerate(rows)
    ]
    return [to_json(requests).decode()]


def _claims(rows: Sequence[ClaimRow], records: Sequence[asyncpg.Record]) -> Sequence[Claim | Exception]:
    found = {record["position"]: _claim_or_why_not(record) for record in records}
    return [found[position] for position in range(len(rows))]


def _claim_or_why_not(record: asyncpg.Record) -> Claim | Exception:
    if not record["locked"]:
        return SessionBusyElsewhere()
    try:
        return _claim(record)
    except ValueError as error:
        # Another program stored what can't be read here, a state nested 200 levels deep, say.
        return ClaimUnreadable(f"the stored session can't be read: {type(error).__name__}")


def _claim(record: asyncpg.Record) -> Claim:
    return Claim(
        database_time=record["database_time"],
        receipt=_receipt(record) if record["receipt_reply"] is not None else None,
        run_exists=record["run_exists"],
        session=_session(record) if record["session_exists"] else None,
        history=_runs(record["history"]),
        attempts=record["attempts"] or 0,
        fruitless=record["fruitless"] or 0,
        cancelled=record["cancelled"],
    )


def _runs(text: str | None) -> tuple[PastRun, ...]:
    return tuple(past_run(run) for run in _parsed(text, list))


def _receipt(record: asyncpg.Record) -> Receipt:
    return Receipt(
        session_id=record["receipt_session_id"],
        user_id=record["receipt_user_id"],
        target=Target(type=SessionType(record["receipt_target_type"]), id=record["receipt_target_id"]),
        fingerprint=record["receipt_fingerprint"],
        reply=record["receipt_reply"],
    )


def _session(record: asyncpg.Record) -> SessionRow:
    data = _parsed(record["session_data"], dict)
    state = data.get("session_state")
    name, summary = data.get("session_name"), _parsed(record["summary"], dict).get("summary")
    return SessionRow(
        session_type=record["session_type"],
        target_id=record["target_id"],
        user_id=record["user_id"],
        name=name if isinstance(name, str) else None,
        session_state=state if isinstance(state, dict) else {},
        metadata=_parsed(record["metadata"], dict),
        summary=summary if isinstance(summary, str) else None,
        turn_seq=record["turn_seq"],
    )


def _parsed(text: str | None, kind: type[Any]) -> Any:  # noqa: ANN401 - an instance of kind
    """Parse a jsonb value that should be an object or array; what another program left there instead is empty."""
    value = None if text is None else from_json(text)
    return value if isinstance(value, kind) else kind()


def _commit_arguments(rows: Sequence[CommitRow]) -> Sequence[Any]:
    receipts, replies = _receipts_and_replies([row.answer for row in rows])
    turns = [
        {
            "position": position,
            "session": row.session,
            "turn_seq": row.turn_seq,
            "runs": row.runs,
            "receipt": receipt,
        }
        for position, (row, receipt) in enumerate(zip(rows, receipts, strict=True), start=1)
    ]
    return [to_json(turns).decode(), replies]


def _outcomes(rows: Sequence[CommitRow], records: Sequence[asyncpg.Record]) -> Sequence[CommitOutcome | Exception]:
    found = {record["position"]: CommitOutcome(record["outcome"]) for record in records}
    return [found[position] for position in range(1, len(rows) + 1)]


def _receipt_arguments(rows: Sequence[ReceiptRow]) -> Sequence[Any]:
    receipts, replies = _receipts_and_replies(rows)
    return [to_json(receipts).decode(), replies]


def _receipts_and_replies(rows: Sequence[ReceiptRow]) -> tuple[list[JsonObject], list[bytes]]:
    """Return the receipts of some answers, and the bytes that they name by position: the rows' own replies first."""
    receipts = [row.receipt | {"position": position} for position, row in enumerate(rows, start=1)]
    replies = [row.reply for row in rows]
    for row, receipt in zip(rows, receipts, strict=True):
        if row.others:
            numbered = enumerate(row.others, start=len(replies) + 1)
            receipt["others"] = [other.receipt | {"position": position} for position, other in numbered]
            replies += [other.reply for other in row.others]
        if row.pause is not None:
            replies.append(row.pause)
            receipt["pause"] = {"position": len(replies), "seconds": row.pause_seconds}
    return receipts, replies


@dataclass(frozen=True, slots=True)
class StartRow:
    """A run that is started, and whose session."""

    run_id: str
    session_id: str


def _start_arguments(rows: Sequence[StartRow]) -> Sequence[Any]:
    return [to_json([asdict(row) for row in rows]).decode(), worker_name()]


def _by_run_id(rows: Sequence[StartRow], records: Sequence[asyncpg.Record]) -> Sequence[int | Exception]:
    attempts = {record["run_id"]: record["attempts"] for record in records}
    return [attempts[row.run_id] if row.run_id in attempts else ClaimOutdated() for row in rows]


@dataclass(frozen=True, slots=True)
class BeginRow:
    """A run of which a further attempt begins, and whose session; and the request's fingerprint."""

    run_id: str
    session_id: str
    fingerprint: bytes
    outlived: int = 0
    """How many of its attempts this worker has outlived since it said so last."""


def _begin_arguments(rows: Sequence[BeginRow]) -> Sequence[Any]:
    runs = [
        {
            "run_id": row.run_id,
            "session_id": row.session_id,
            "request": row.fingerprint.hex(),
            "outlived": row.outlived,
        }
        for row in rows
    ]
    return [to_json(runs).decode(), worker_name()]


def _begun(rows: Sequence[BeginRow], records: Sequence[asyncpg.Record]) -> Sequence[Earlier | Exception]:
    found = {record["run_id"]: record for record in records}
    return [_earlier(found[row.run_id]) if row.run_id in found else ClaimOutdated() for row in rows]


def _earlier(record: asyncpg.Record) -> Earlier:
    steps = zip(_parsed(record["steps"], list), record["records"] or (), strict=True)
    return Earlier(
        attempt=record["attempts"],
        steps=tuple(_step(step, text) for step, text in steps),
        history=_runs(record["history"]),
    )


def _step(step: JsonObject, text: bytes | None) -> StepRecord:
    return StepRecord(
        key=step["key"],
        seq=step["seq"],
        attempt=step["attempt"],
        state=StepState(step["state"]),
        asked=bytes.fromhex(step["asked"] or ""),
        record=text or b"",
        input_tokens=step["input_tokens"],
        output_tokens=step["output_tokens"],
    )


@dataclass(frozen=True, slots=True)
class CoalesceRow:
    """A request to whose turn others may be joined, and those others."""

    request: RunRequest
    candidates: tuple[RunRequest, ...]


def _coalesce_arguments(rows: Sequence[CoalesceRow]) -> Sequence[Any]:
    asked: list[bytes] = []
    leaders = []
    for position, row in enumerate(rows):
        candidates = []
        for one in row.candidates:
            asked.append(one.model_dump_json(exclude_defaults=True).encode())
            candidates.append({"number": len(asked), "run_id": one.run_id, "request": one.fingerprint.hex()})
        leaders.append(
            {
                "position": position,
                "run_id": row.request.run_id,
                "session_id": row.request.session_id,
                "user_id": row.request.user_id,
                "request": row.request.fingerprint.hex(),
                "candidates": candidates,
            }
        )
    return [to_json(leaders).decode(), asked]


def _coalesced(rows: Sequence[CoalesceRow], records: Sequence[asyncpg.Record]) -> Sequence[Coalesced | Exception]:
    found = {record["position"]: record for record in records}
    return [
        Coalesced(
            tuple(RunRequest.model_validate_json(asked) for asked in found[position]["joined"] or ()),
            found[position]["cancelled"],
        )
        for position in range(len(rows))
    ]


@dataclass(frozen=True, slots=True)
class PausesRow:
    """A request that has to know of its session's paused runs."""

    session_id: str
    continues: str | None


def _pauses(rows: Sequence[PausesRow], records: Sequence[asyncpg.Record]) -> Sequence[Pauses | Exception]:
    found = {record["position"]: record for record in records}
    return [_pauses_or_why_not(found[position]) for position in range(len(rows))]


def _pauses_or_why_not(record: asyncpg.Record) -> Pauses | Exception:
    text = record["pause"]
    try:
        pause = None if text is None else Pause.model_validate_json(text)
    except ValueError as error:
        return StatementRefused(f"the pause can't be read: {type(error).__name__}")
    return Pauses(record["session_paused"], pause, record["expires_at"])


@dataclass(frozen=True, slots=True)
class ContinueRow:
    """A run that goes on with a paused one."""

    run_id: str
    session_id: str
    fingerprint: bytes
    continues: str


def _continue_arguments(rows: Sequence[ContinueRow]) -> Sequence[Any]:
    entries = [
        {
            "run_id": row.run_id,
            "session_id": row.session_id,
            "request": row.fingerprint.hex(),
            "continues": row.continues,
        }
        for row in rows
    ]
    return [to_json(entries).decode()]


def _continued(rows: Sequence[ContinueRow], records: Sequence[asyncpg.Record]) -> Sequence[Exception | None]:
    found = {record["run_id"] for record in records}
    return [None if row.run_id in found else ClaimOutdated("the paused run was dropped since") for row in rows]


@dataclass(frozen=True, slots=True)
class StepsRow:
    """Steps of a run to record, and the fingerprint of its request."""

    run_id: str
    fingerprint: bytes
    steps: tuple[StepRecord, ...]


def _steps_arguments(rows: Sequence[StepsRow]) -> Sequence[Any]:
    steps = [(row, step) for row in rows for step in row.steps]
    entries = [
        {
            "position": position,
            "run_id": row.run_id,
            "request": row.fingerprint.hex(),
            "key": step.key,
            "seq": step.seq,
            "attempt": step.attempt,
            "state": step.state,
            "asked": step.asked.hex(),
            "input_tokens": step.input_tokens,
            "output_tokens": step.output_tokens,
        }
        for position, (row, step) in enumerate(steps, start=1)
    ]
    return [to_json(entries).decode(), [step.record for _, step in steps]]


@dataclass(frozen=True, slots=True)
class Unsummarized:
    """What the summary of a session lacks."""

    previous: str | None
    runs: tuple[PastRun, ...]
    run_indexes: tuple[int, ...]
    """The run_index of each."""


@dataclass(frozen=True, slots=True)
class UnsummarizedRow:
    """A session whose summary may lack something."""

    session_id: str
    after: int | None
    """The run_index up to which its runs are left out; None: none is that is not covered."""


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A summary to store."""

    session_id: str
    summary: JsonObject
    up_to: int
    usage: JsonObject


@dataclass(frozen=True, slots=True)
class Cancellation:
    """That a run is not wanted any more: said by who names its session and user."""

    run_id: str
    session_id: str
    user_id: str | None


def _cancelled(
    rows: Sequence[tuple[str, ...]], records: Sequence[asyncpg.Record]
) -> Sequence[frozenset[Cancellation] | Exception]:
    found = frozenset(Cancellation(record["run_id"], record["session_id"], record["user_id"]) for record in records)
    return [found] * len(rows)


@dataclass(frozen=True, slots=True)
class WholeRunsRow:
    """Runs of a session that are wanted as they are stored."""

    session_id: str
    run_ids: tuple[str, ...]


def _whole_runs(
    rows: Sequence[WholeRunsRow], records: Sequence[asyncpg.Record]
) -> Sequence[tuple[JsonObject, ...] | Exception]:
    found: list[list[JsonObject]] = [[] for _ in rows]
    for record in records:
        # What can't be read, or is no object, is left out: the history has what is shown of the run in any case.
        with suppress(ValueError):
            run = from_json(record["run_data"])
            found[record["position"]] += [run] if isinstance(run, dict) else []
    return [tuple(runs) for runs in found]


def _unsummarized(
    rows: Sequence[UnsummarizedRow], records: Sequence[asyncpg.Record]
) -> Sequence[Unsummarized | Exception | None]:
    found = {record["position"]: record for record in records}
    return [_lacking(found.get(position)) for position in range(len(rows))]


def _lacking(record: asyncpg.Record | None) -> Unsummarized | Exception | None:
    if record is None:
        return None
    try:
        previous = _parsed(record["summary"], dict).get("summary")
        runs = tuple(past_run(run) for run in _parsed(record["runs"], list))
    except ValueError as error:
        return StatementRefused(f"the stored session can't be read: {type(error).__name__}")
    return Unsummarized(previous if isinstance(previous, str) else None, runs, tuple(record["run_indexes"] or ()))


CLAIM: Final = Statement[ClaimRow, Claim](
    name="claim",
    text=sql.CLAIM_TURNS,
    arguments=_claim_arguments,
    results=_claims,
    undo=lambda rows: (sql.UNLOCK_SESSIONS, [[row.session_id for row in rows]]),
    droppable=True,
)
COMMIT: Final = Statement[CommitRow, CommitOutcome](
    name="commit",
    text=sql.COMMIT_TURNS,
    arguments=_commit_arguments,
    results=_outcomes,
    bytes_of=lambda row: row.size_bytes,
)
STORE_RECEIPT: Final = Statement[ReceiptRow, None](
    name="store_receipt",
    text=sql.STORE_RECEIPTS,
    arguments=_receipt_arguments,
    results=lambda rows, _records: [None] * len(rows),
)
RUNS_TO_SUMMARIZE: Final = Statement[UnsummarizedRow, Unsummarized | None](
    name="runs_to_summarize",
    text=sql.RUNS_TO_SUMMARIZE,
    arguments=lambda rows: [
        to_json([{"position": position} | asdict(row) for position, row in enumerate(rows)]).decode(),
        MOST_RUNS_SUMMARIZED,
        MOST_RUNS_MADE_UP_FOR,
        _MOST_BYTES_READ,
    ],
    results=_unsummarized,
    droppable=True,
)
READ_WHOLE_RUNS: Final = Statement[WholeRunsRow, tuple[JsonObject, ...]](
    name="read_whole_runs",
    text=sql.READ_WHOLE_RUNS,
    arguments=lambda rows: [
        to_json([{"position": position} | asdict(row) for position, row in enumerate(rows)]).decode(),
        _MOST_HISTORY_BYTES,
    ],
    results=_whole_runs,
    droppable=True,
)
STORE_SUMMARY: Final = Statement[SummaryRow, None](
    name="store_summary",
    text=sql.STORE_SUMMARIES,
    arguments=lambda rows: [to_json([asdict(row) for row in rows]).decode()],
    results=lambda rows, _records: [None] * len(rows),
)
UNLOCK: Final = Statement[str, None](
    name="unlock",
    text=sql.UNLOCK_SESSIONS,
    arguments=lambda session_ids: [list(session_ids)],
    results=lambda session_ids, _records: [None] * len(session_ids),
)
CANCEL_RUN: Final = Statement[Cancellation, None](
    name="cancel_run",
    text=sql.CANCEL_RUNS,
    arguments=lambda rows: [to_json([asdict(row) for row in rows]).decode()],
    results=lambda rows, _records: [None] * len(rows),
)
CANCELLED_RUNS: Final = Statement[tuple[str, ...], frozenset[Cancellation]](
    name="cancelled_runs",
    text=sql.CANCELLED_RUNS,
    arguments=lambda rows: [[run_id for run_ids in rows for run_id in run_ids]],
    results=_cancelled,
    droppable=True,
)
COALESCE: Final = Statement[CoalesceRow, Coalesced](
    name="coalesce",
    text=sql.COALESCE_RUNS,
    arguments=_coalesce_arguments,
    results=_coalesced,
    droppable=True,
)
READ_PAUSES: Final = Statement[PausesRow, Pauses](
    name="read_pauses",
    text=sql.READ_PAUSES,
    arguments=lambda rows: [
        to_json([{"position": position} | asdict(row) for position, row in enumerate(rows)]).decode()
    ],
    results=_pauses,
    droppable=True,
)
CONTINUE_RUN: Final = Statement[ContinueRow, None](
    name="continue_run",
    text=sql.CONTINUE_RUNS,
    arguments=_continue_arguments,
    results=_continued,
    droppable=True,
)
COUNT_ATTEMPT: Final = Statement[StartRow, int](
    name="count_attempt",
    text=sql.COUNT_ATTEMPTS,
    arguments=_start_arguments,
    results=_by_run_id,
    droppable=True,
)
BEGIN_ATTEMPT: Final = Statement[BeginRow, Earlier](
    name="begin_attempt",
    text=sql.BEGIN_ATTEMPTS,
    arguments=_begin_arguments,
    results=_begun,
    droppable=True,
)
RECORD_STEPS: Final = Statement[StepsRow, None](
    name="record_steps",
    text=sql.RECORD_STEPS,
    arguments=_steps_arguments,
    results=lambda rows, _records: [None] * len(rows),
    bytes_of=lambda row: sum(len(step.record) for step in row.steps),
)
UNCOUNT_ATTEMPT: Final = Statement[str, None](
    name="uncount_attempt",
    text=sql.UNCOUNT_ATTEMPTS,
    arguments=lambda run_ids: [list(run_ids)],
    results=lambda run_ids, _records: [None] * len(run_ids),
)
