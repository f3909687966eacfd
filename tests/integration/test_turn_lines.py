"""What a worker logs of its turns: a line each, with what matters, and nothing of what was said unless asked for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue
from structlog.testing import capture_logs

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings

ASKED = "a private question"
ANSWERED = "a private answer"


@executor("confidant")
async def confidant(turn: Turn) -> JsonValue:
    await turn.step("remembers", lambda: ANSWERED)
    turn.session_state["secret"] = ANSWERED
    if turn.metadata.get("fail"):
        raise RuntimeError("as the test says")
    turn.usage.model_requests += 2
    return ANSWERED * 100


async def told_of_turns(settings: Settings, broker: TestBroker) -> list[Any]:
    """What is logged from the arrival of the first request to the last reply, of all kinds of request."""
    with capture_logs() as logged:
        async with worker_of(settings, confidant) as worker:
            await eventually(lambda: worker.condition().consuming)
            logged.clear()
            asked = {"team_id": "confidant", "user_id": "a-private-user"}
            run_id = await broker.ask("s1", ASKED, **asked)
            await broker.reply(run_id)
            await broker.ask("s1", ASKED, **asked, run_id=run_id)
            await broker.reply(await broker.ask("s1", ASKED, **asked, metadata={"fail": True}))
            await broker.reply(await broker.ask("s1", ASKED, team_id="confidant", user_id="somebody else"))
            await broker.reply(await broker.ask("s2", ASKED, team_id="nobody"))
            await eventually(lambda: len(broker.replies) == 5)
            return list(logged)


async def test_each_request_has_one_line_and_nothing_is_in_any_that_was_said(
    settings: Settings, broker: TestBroker
) -> None:
    logged = await told_of_turns(settings, broker)
    at_info = [(line["event"], line["log_level"]) for line in logged if line["log_level"] != "debug"]
    assert sorted(at_info) == [
        ("executor_failed", "error"),
        ("turn_finished", "info"),
        ("turn_finished", "info"),
        ("turn_rejected", "info"),
        ("turn_rejected", "info"),
        ("turn_replayed", "info"),
    ]
    assert "private" not in repr(logged)


async def test_the_line_of_a_turn_says_what_it_was_and_what_it_took(settings: Settings, broker: TestBroker) -> None:
    line, failed = [line for line in await told_of_turns(settings, broker) if line["event"] == "turn_finished"]
    seconds = {name: line.pop(name) for name in tuple(line) if name.endswith("_seconds")}
    assert seconds.keys() == {"queue_seconds", "claim_seconds", "execute_seconds", "commit_seconds"}
    assert all(0 < value < 30 for value in seconds.values())
    assert line.pop("reply_bytes") > len(ANSWERED) * 100
    assert line == {
        "event": "turn_finished",
        "log_level": "info",
        "target": "team.confidant",
        "status": "COMPLETED",
        "code": None,
        "turn": 1,
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "model_requests": 2,
        "tool_calls": 0,
        "resumed_steps": 0,
        "joined": 0,
        "redelivered": False,
    }
    assert (failed["status"], failed["code"]) == ("ERROR", "executor_failed")


@pytest.mark.parametrize("asked_for", [True, False])
async def test_who_asks_for_content_has_it_in_the_turn_s_line_shortened(
    settings: Settings, broker: TestBroker, *, asked_for: bool
) -> None:
    logged = await told_of_turns(settings.model_copy(update={"log_content": asked_for}), broker)
    line = next(line for line in logged if line["event"] == "turn_finished")
    if asked_for:
        assert line["input"] == ASKED
        assert line["answer"].startswith(ANSWERED)
        assert len(line["answer"]) < 510
    else:
        assert not {"input", "answer"} & line.keys()
