"""The attempts of a run, and the steps that they record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import asyncpg
from pydantic_core import to_json

import sql
from worker.errors import ClaimOutdated
from worker.executors.journal import StepRecord, StepState
from worker.sessions.claim import Earlier
from worker.sessions.database import worker_name
from worker.sessions.lanes import Statement
from worker.sessions.statements.reading import JsonObject, parsed, runs_of


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
    steps = zip(parsed(record["steps"], list), record["records"] or (), strict=True)
    return Earlier(
        attempt=record["attempts"],
        steps=tuple(_step(step, text) for step, text in steps),
        history=runs_of(record["history"]),
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
