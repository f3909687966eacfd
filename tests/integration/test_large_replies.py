"""Replies larger than RabbitMQ takes: stored, and the reply that is sent says where."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue

from tests.support.broker import TestBroker
from tests.support.workers import worker_of
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings

MEBIBYTE = 2**20


@executor("big")
async def big(turn: Turn) -> JsonValue:
    """Answer with so many mebibytes."""
    return "x" * (int(turn.input) * MEBIBYTE)


async def test_a_reply_over_15_mib_is_stored_in_full_and_says_where(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, big):
        run_id = await broker.ask("s1", "20", team_id="big")
        message = await broker.reply_message(run_id)
        reply = json.loads(message.body)
        after = await broker.reply(await broker.ask("s1", "0", team_id="big"))
    assert (reply["status"], reply["content"], reply["turn"]) == ("COMPLETED", None, 1)
    assert (reply["error"]["code"], reply["error"]["retryable"]) == ("reply_too_large", False)
    assert f"ai.sessions: session s1, run {run_id}" in reply["error"]["message"]
    stored = await database.fetchrow(
        """select run ->> 'status' as status, octet_length(run ->> 'content') as bytes, run -> 'error' as error
           from ai.sessions, jsonb_array_elements(runs) as run where run ->> 'run_id' = $1""",
        run_id,
    )
    assert stored is not None
    assert tuple(stored) == ("COMPLETED", 20 * MEBIBYTE, None)
    assert message.body == await database.fetchval("select reply from receipts where run_id = $1", run_id)
    assert after["turn"] == 2


@pytest.mark.parametrize("fields", [{}, {"input": "1"}], ids=["the same", "a conflict"])
async def test_asked_again_it_is_answered_as_any_other(
    settings: Settings, broker: TestBroker, fields: dict[str, Any]
) -> None:
    body = {"run_id": "r1", "session_id": "s1", "team_id": "big", "input": "16"}
    async with worker_of(settings, big):
        await broker.publish(body)
        first = await broker.reply_message("r1")
        broker.replies.clear()
        await broker.publish(body | fields)
        again = await broker.reply_message("r1")
    assert (again.body == first.body) is not bool(fields)


async def test_what_would_hold_the_lane_up_for_long_is_an_invalid_result(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, big):
        reply = await broker.reply(await broker.ask("s1", "33", team_id="big"))
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "invalid_result")
    assert await database.fetchval("select count(*) from agno_runs") == 1
