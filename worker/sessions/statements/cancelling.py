"""Runs that are not wanted any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import asyncpg
from pydantic_core import to_json

import sql
from worker.sessions.lanes import Statement


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
