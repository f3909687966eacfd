"""Claiming sessions, and giving them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from pydantic_core import to_json

import sql
from schemas.ids import SessionType, Target
from worker.errors import ClaimUnreadable, SessionBusyElsewhere
from worker.sessions.claim import Claim, Receipt, SessionRow
from worker.sessions.lanes import Statement
from worker.sessions.statements.reading import parsed, runs_of


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
        history=runs_of(record["history"]),
        attempts=record["attempts"] or 0,
        fruitless=record["fruitless"] or 0,
        cancelled=record["cancelled"],
    )


def _receipt(record: asyncpg.Record) -> Receipt:
    return Receipt(
        session_id=record["receipt_session_id"],
        user_id=record["receipt_user_id"],
        target=Target(type=SessionType(record["receipt_target_type"]), id=record["receipt_target_id"]),
        fingerprint=record["receipt_fingerprint"],
        reply=record["receipt_reply"],
    )


def _session(record: asyncpg.Record) -> SessionRow:
    data = parsed(record["session_data"], dict)
    state = data.get("session_state")
    name, summary = data.get("session_name"), parsed(record["summary"], dict).get("summary")
    return SessionRow(
        session_type=record["session_type"],
        target_id=record["target_id"],
        user_id=record["user_id"],
        name=name if isinstance(name, str) else None,
        session_state=state if isinstance(state, dict) else {},
        metadata=parsed(record["metadata"], dict),
        summary=summary if isinstance(summary, str) else None,
        turn_seq=record["turn_seq"],
    )


CLAIM: Final = Statement[ClaimRow, Claim](
    name="claim",
    text=sql.CLAIM_TURNS,
    arguments=_claim_arguments,
    results=_claims,
    undo=lambda rows: (sql.UNLOCK_SESSIONS, [[row.session_id for row in rows]]),
    droppable=True,
)
UNLOCK: Final = Statement[str, None](
    name="unlock",
    text=sql.UNLOCK_SESSIONS,
    arguments=lambda session_ids: [list(session_ids)],
    results=lambda session_ids, _records: [None] * len(session_ids),
)
