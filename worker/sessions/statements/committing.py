"""Committing turns, and keeping answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg
from pydantic_core import to_json

import sql
from worker.sessions.lanes import Statement
from worker.sessions.statements.reading import JsonObject


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
