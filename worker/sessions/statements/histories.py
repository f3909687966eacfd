"""Runs that are read for a turn or for a summary, and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import asyncpg
from pydantic_core import from_json, to_json

import sql
from worker.errors import StatementRefused
from worker.executors.turn import PastRun
from worker.sessions.lanes import Statement
from worker.sessions.statements.reading import JsonObject, parsed
from worker.sessions.stored_runs import past_run

MOST_RUNS_SUMMARIZED: Final = 20
"""At once: what a summary lacks beyond them is the next one's."""
MOST_RUNS_MADE_UP_FOR: Final = 40
"""Of those that a summary lacks, the last so many; older ones it never gets."""
_MOST_HISTORY_BYTES: Final = 16 * 2**20
"""As in the claim."""
_MOST_BYTES_READ: Final = 4 * 2**20
"""Of the runs to summarize, as they are shown: claims and commits wait for the lane meanwhile."""


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
        previous = parsed(record["summary"], dict).get("summary")
        runs = tuple(past_run(run) for run in parsed(record["runs"], list))
    except ValueError as error:
        return StatementRefused(f"the stored session can't be read: {type(error).__name__}")
    return Unsummarized(previous if isinstance(previous, str) else None, runs, tuple(record["run_indexes"] or ()))


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
