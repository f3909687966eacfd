"""The lanes' statements: rows as arguments, and records as what each row gets, in the rows' order."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import pytest

from schemas.ids import SessionType
from tests.unit.examples import nested, team
from worker.errors import ClaimOutdated, SessionBusyElsewhere
from worker.sessions.claim import Claim, Receipt
from worker.sessions.statements import (
    BEGIN_ATTEMPT,
    CLAIM,
    COMMIT,
    COUNT_ATTEMPT,
    RECORD_STEPS,
    STORE_RECEIPT,
    UNCOUNT_ATTEMPT,
    UNLOCK,
    ClaimRow,
    CommitOutcome,
    CommitRow,
    ReceiptRow,
    StartRow,
)

_TIME = datetime(2030, 1, 31, 12, tzinfo=UTC)


def _records(*records: dict[str, Any]) -> Sequence[asyncpg.Record]:
    return cast("Sequence[asyncpg.Record]", records)


def _claimed(position: int = 0, **fields: Any) -> dict[str, Any]:
    """What the claim's function returns for a new session."""
    made = {
        "position": position,
        "locked": True,
        "database_time": _TIME,
        **dict.fromkeys(f"receipt_{name}" for name in ("session_id", "user_id", "target_type", "target_id")),
        "receipt_fingerprint": None,
        "receipt_reply": None,
        "run_exists": False,
        "session_exists": False,
        **dict.fromkeys(["session_type", "target_id", "user_id", "session_data", "metadata", "summary", "turn_seq"]),
        "history": None,
        "attempts": 0,
        "fruitless": 0,
        "cancelled": False,
    }
    return made | fields


def _a_session(position: int = 0, **fields: Any) -> dict[str, Any]:
    stored = {"session_exists": True, "session_type": "team", "target_id": "t1", "turn_seq": 3}
    return _claimed(position, **stored | fields)


def _claim(record: dict[str, Any]) -> Claim:
    (claim,) = CLAIM.results([ClaimRow("r1", "s1", 3)], _records(record))
    assert isinstance(claim, Claim)
    return claim


def test_the_rows_of_a_claim_are_one_json_array_with_their_positions() -> None:
    (argument,) = CLAIM.arguments(
        [ClaimRow("r1", "s1", 3), ClaimRow("rö", 's"2', None, summarized=True, fingerprint=b"\xff", user_id="ü")]
    )
    assert json.loads(argument) == [
        {
            "position": 0,
            "run_id": "r1",
            "session_id": "s1",
            "user_id": None,
            "history_runs": 3,
            "summarized": False,
            "request": "",
        },
        {
            "position": 1,
            "run_id": "rö",
            "session_id": 's"2',
            "user_id": "ü",
            "history_runs": None,
            "summarized": True,
            "request": "ff",
        },
    ]


def test_each_claim_gets_its_own_record_whatever_their_order() -> None:
    rows = [ClaimRow(f"r{number}", f"s{number}", 0) for number in range(3)]
    records = [_claimed(2, run_exists=True), _claimed(0), {"position": 1, "locked": False}]
    first, second, third = CLAIM.results(rows, _records(*records))
    assert isinstance(first, Claim)
    assert first.run_exists is False
    assert isinstance(second, SessionBusyElsewhere)
    assert isinstance(third, Claim)
    assert third.run_exists is True


def test_a_new_session_s_claim_is_empty_but_for_the_time() -> None:
    assert _claim(_claimed()) == Claim(database_time=_TIME, receipt=None, run_exists=False, session=None, history=())


def test_a_receipt_is_read_with_its_bytes() -> None:
    claim = _claim(
        _claimed(
            receipt_session_id="s1",
            receipt_user_id="u1",
            receipt_target_type="team",
            receipt_target_id="t1",
            receipt_fingerprint=b"\x00\x01",
            receipt_reply=b'{"a": 1}',
        )
    )
    assert claim.receipt == Receipt("s1", "u1", team("t1"), b"\x00\x01", b'{"a": 1}')


def test_a_session_is_read_with_its_state_and_the_last_runs() -> None:
    history = [{"run_id": "p1", "input": {"input_content": "q"}, "content": "a", "created_at": 5}]
    claim = _claim(
        _a_session(
            user_id="u1",
            session_data=json.dumps({"session_name": "n", "session_state": {"a": [1]}}),
            metadata='{"channel": "web"}',
            summary='{"summary": "short"}',
            history=json.dumps(history),
        )
    )
    assert claim.session is not None
    assert (claim.session.session_type, claim.session.target_id, claim.session.user_id) == ("team", "t1", "u1")
    assert (claim.session.session_state, claim.session.metadata) == ({"a": [1]}, {"channel": "web"})
    assert (claim.session.summary, claim.session.turn_seq) == ("short", 3)
    assert [(run.run_id, run.input, run.content) for run in claim.history] == [("p1", "q", "a")]


@pytest.mark.parametrize(
    "data", [None, "null", "[]", '"text"', "5", '{"session_state": null}', '{"session_state": [1]}']
)
def test_a_session_s_data_that_another_program_left_odd_is_an_empty_state(data: str | None) -> None:
    session = _claim(_a_session(session_data=data, metadata=data, summary=data, history=data)).session
    assert session is not None
    assert session.session_state == {}


def test_a_session_that_can_t_be_read_fails_its_own_claim_and_no_other_of_the_batch() -> None:
    """Another program may have stored a state that is nested deeper than is read here."""
    deep = json.dumps({"session_state": {"deep": nested(500)}})
    rows = [ClaimRow("r0", "s0", 3), ClaimRow("r1", "s1", 3)]
    bad, good = CLAIM.results(rows, _records(_a_session(0, session_data=deep), _a_session(1)))
    assert isinstance(good, Claim)
    assert isinstance(bad, Claim | Exception)


def _commit(number: int, *, turn_seq: int | None = None) -> CommitRow:
    return CommitRow(
        session={"session_id": f"s{number}", "name": "ö"},
        turn_seq=turn_seq,
        runs=[{"type": "team", "data": {"run_id": f"r{number}"}}],
        answer=ReceiptRow({"run_id": f"r{number}"}, f"reply {number}".encode()),
        size_bytes=7,
    )


def test_the_rows_of_a_commit_are_one_json_array_and_their_replies_by_position_from_1() -> None:
    text, replies = COMMIT.arguments([_commit(1), _commit(2, turn_seq=7)])
    turns = json.loads(text)
    assert [turn["position"] for turn in turns] == [1, 2]
    assert [turn["turn_seq"] for turn in turns] == [None, 7]
    assert turns[1] == {
        "position": 2,
        "session": {"session_id": "s2", "name": "ö"},
        "turn_seq": 7,
        "runs": [{"type": "team", "data": {"run_id": "r2"}}],
        "receipt": {"run_id": "r2", "position": 2},
    }
    assert replies == [b"reply 1", b"reply 2"]


def test_each_commit_gets_its_own_outcome_whatever_their_order() -> None:
    records = _records(
        {"position": 3, "outcome": "stale"},
        {"position": 1, "outcome": "committed"},
        {"position": 2, "outcome": "deleted"},
    )
    outcomes = COMMIT.results([_commit(number) for number in range(3)], records)
    assert outcomes == [CommitOutcome.COMMITTED, CommitOutcome.DELETED, CommitOutcome.STALE]


def test_receipts_are_stored_with_their_replies_by_position() -> None:
    rows = [ReceiptRow({"run_id": "r1"}, b"one"), ReceiptRow({"run_id": "r2"}, b"two")]
    text, replies = STORE_RECEIPT.arguments(rows)
    assert json.loads(text) == [{"run_id": "r1", "position": 1}, {"run_id": "r2", "position": 2}]
    assert replies == [b"one", b"two"]
    assert STORE_RECEIPT.results(rows, _records({"store_receipts": ""})) == [None, None]


def test_answers_to_requests_that_joined_a_turn_come_behind_all_others() -> None:
    joined = (ReceiptRow({"run_id": "r3"}, b"three"), ReceiptRow({"run_id": "r4"}, b"four"))
    rows = [ReceiptRow({"run_id": "r1"}, b"one", joined), ReceiptRow({"run_id": "r2"}, b"two")]
    text, replies = STORE_RECEIPT.arguments(rows)
    first, second = json.loads(text)
    assert first["others"] == [{"run_id": "r3", "position": 3}, {"run_id": "r4", "position": 4}]
    assert "others" not in second
    assert replies == [b"one", b"two", b"three", b"four"]


def test_sessions_are_unlocked_by_their_ids() -> None:
    assert UNLOCK.arguments(["s1", "s2"]) == [["s1", "s2"]]
    assert UNLOCK.results(["s1", "s2"], _records()) == [None, None]


def test_each_run_gets_the_number_of_its_attempt_whatever_their_order() -> None:
    rows = [StartRow("r1", "s1"), StartRow("r2", "s2")]
    (started, worker) = COUNT_ATTEMPT.arguments(rows)
    assert json.loads(started) == [{"run_id": "r1", "session_id": "s1"}, {"run_id": "r2", "session_id": "s2"}]
    assert worker.endswith(f":{os.getpid()}")
    records = _records({"run_id": "r2", "attempts": 5}, {"run_id": "r1", "attempts": 2})
    assert COUNT_ATTEMPT.results(rows, records) == [2, 5]
    (missing,) = COUNT_ATTEMPT.results([StartRow("r3", "s3")], _records())
    assert isinstance(missing, ClaimOutdated)


def test_the_statements_have_names_of_their_own() -> None:
    """A lane gathers rows by the statement's name."""
    statements: list[Any] = [
        CLAIM,
        COMMIT,
        STORE_RECEIPT,
        UNLOCK,
        COUNT_ATTEMPT,
        BEGIN_ATTEMPT,
        RECORD_STEPS,
        UNCOUNT_ATTEMPT,
    ]
    assert len({statement.name for statement in statements}) == len(statements)
    assert {SessionType.TEAM.value, SessionType.AGENT.value, SessionType.WORKFLOW.value} == {
        "team",
        "agent",
        "workflow",
    }
