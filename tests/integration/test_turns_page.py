"""What a worker says of its turns on /turns: which, since when, at which step; and nothing of what is said in them."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import JsonValue

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.examples import a_request
from worker.executors.function import executor
from worker.executors.journal import Journal
from worker.executors.turn import Turn
from worker.operations.turns_page import MOST_SHOWN, turns_page
from worker.sessions.store import SessionStore
from worker.settings import Settings
from worker.turns.running import RunningRuns
from worker.worker import Worker


def told(worker: Worker) -> dict[str, Any]:
    answer = worker.pages["/turns"]()
    assert (answer.status, answer.content_type) == (200, "application/json")
    return dict(json.loads(answer.body))


async def test_what_is_executed_and_what_waits_for_room_is_there_and_nothing_that_was_said(
    settings: Settings, broker: TestBroker
) -> None:
    go_on = asyncio.Event()

    @executor("thinking")
    async def thinking(turn: Turn) -> JsonValue:
        await turn.step("looked up", lambda: "a private answer")
        await turn.step("pays", go_on.wait)
        return None

    crowded = settings.model_copy(update={"max_concurrent_turns": 1})
    async with worker_of(crowded, thinking) as worker:
        asked = {"user_id": "a-private-user", "team_id": "thinking"}
        first = await broker.ask("s1", "a private question", **asked)
        await eventually(lambda: any(turn["step"] == "pays#1" for turn in told(worker)["turns"]))
        await broker.ask("s1", "a private question", **asked)
        last = await broker.ask("s2", "a private question", **asked)
        await eventually(lambda: (told(worker)["total"], told(worker)["behind"]) == (2, 1))
        executed, waiting = told(worker)["turns"]
        page = worker.pages["/turns"]().body.decode()
        go_on.set()
        await broker.reply(last)
        await eventually(lambda: told(worker) == {"total": 0, "behind": 0, "turns": []})
    since = datetime.fromisoformat(executed.pop("since"))
    assert timedelta() < datetime.now(UTC) - since < timedelta(minutes=1)
    assert executed == {
        "run_id": first,
        "session_id": "s1",
        "target": "team.thinking",
        "stage": "executing",
        "attempt": 1,
        "step": "pays#1",
    }
    assert (waiting["run_id"], waiting["stage"], waiting["attempt"], waiting["step"]) == (last, "waiting", None, None)
    assert "private" not in page


async def test_a_turn_that_is_taken_again_says_which_attempt_it_is(settings: Settings, broker: TestBroker) -> None:
    go_on = asyncio.Event()

    @executor("thinking")
    async def thinking(turn: Turn) -> JsonValue:
        await turn.step("looked up", lambda: 1)
        if turn.attempt == 1:
            for lane in workers[0].sessions._lanes:
                lane.connection().abandon("the test says so")
        await turn.step("pays", go_on.wait)
        return None

    workers: list[Worker] = []
    async with worker_of(settings, thinking) as worker:
        workers.append(worker)
        run_id = await broker.ask("s1", team_id="thinking")
        await eventually(lambda: [(one["attempt"], one["step"]) for one in told(worker)["turns"]] == [(2, "pays#1")])
        go_on.set()
        await broker.reply(run_id)


class _Unheard:
    """A session store that nobody tells anything."""

    first_lane = cast("Any", type("Lane", (), {"listen": lambda *_: None}))()


def test_of_very_many_the_first_thousand_are_shown_and_all_are_counted() -> None:
    running = RunningRuns(cast("SessionStore", _Unheard()))
    with ExitStack() as stack:
        for number in range(MOST_SHOWN + 500):
            stack.enter_context(running.entered(a_request(run_id=f"r{number}")))
        page = json.loads(turns_page(running, requests=MOST_SHOWN + 600).body)
    assert (page["total"], page["behind"], len(page["turns"])) == (MOST_SHOWN + 500, 100, MOST_SHOWN)
    assert (page["turns"][0]["run_id"], page["turns"][-1]["run_id"]) == ("r0", f"r{MOST_SHOWN - 1}")


def test_a_step_whose_name_can_not_be_written_as_it_is_is_shown_all_the_same() -> None:
    running = RunningRuns(cast("SessionStore", _Unheard()))
    journal = Journal(None)
    journal.last_key = "leader/tool:a\ud800"
    with running.entered(a_request(run_id="r")) as run, run.attempted(journal):
        (shown,) = json.loads(turns_page(running, requests=1).body)["turns"]
    assert shown["step"] == "leader/tool:a\ufffd"
