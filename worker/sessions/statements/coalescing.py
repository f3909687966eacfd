"""Requests that join a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from pydantic_core import to_json

import sql
from schemas.requests import RunRequest
from worker.sessions.claim import Coalesced
from worker.sessions.lanes import Statement


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


COALESCE: Final = Statement[CoalesceRow, Coalesced](
    name="coalesce",
    text=sql.COALESCE_RUNS,
    arguments=_coalesce_arguments,
    results=_coalesced,
    droppable=True,
)
