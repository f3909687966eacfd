"""Paused runs, and those that go on with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import asyncpg
from pydantic_core import to_json

import sql
from worker.errors import ClaimOutdated, StatementRefused
from worker.executors.pauses import Pause
from worker.sessions.claim import Pauses
from worker.sessions.lanes import Statement


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
