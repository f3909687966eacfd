"""Workers die in the middle of turns: what was recorded is not called again, and what kills workers is told apart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.acceptance.stage import DATA, Gates, json_of, stored_runs, worker_on
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, environment_of, run_command
from worker.settings import Settings

TEAMS = "durable_teams:everything"


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


def a_worker(settings: Settings, gates: Gates, *, attempts: int = 3, drain_seconds: float = 30) -> WorkerProcess:
    environment = {"TEAMTURN_MAX_ATTEMPTS": str(attempts), "TEAMTURN_DRAIN_TIMEOUT": str(drain_seconds)}
    return worker_on(settings, gates, teams=TEAMS, cwd=DATA, **environment)


async def _killed_at(gate: str, settings: Settings, gates: Gates, broker: TestBroker, **asked: str) -> str:
    """Ask, and kill the worker when it has come to a gate; return the run_id."""
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", **asked)
        await gates.reached(gate)
        worker.kill()
        await worker.exited()
    gates.open(gate)
    return run_id


async def _state(database: asyncpg.Connection, session_id: str) -> Any:
    data = await database.fetchval("select session_data from ai.sessions where session_id = $1", session_id)
    return json_of(data)["session_state"]


async def test_a_killed_turn_goes_on_behind_its_last_recorded_step(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    run_id = await _killed_at("gate", settings, gates, broker, text="look pay gate? last", team_id="steps")
    async with a_worker(settings, gates) as worker:
        reply = await broker.reply(run_id)
        (resumed,) = worker.events("turn_resumed")
    assert (reply["status"], reply["attempt"]) == ("COMPLETED", 2)
    assert reply["content"] == ["look", "pay", "gate", "last"]
    assert [gates.visits(name) for name in ("look", "pay", "gate", "last")] == [1, 1, 2, 1]
    assert (resumed["steps"], resumed["behind"]) == (2, "pay#1")
    assert await _state(database, "s1") == {"made": ["look", "pay", "gate", "last"]}
    assert await database.fetchval("select count(*) from ai.turn_steps") == 0


async def test_a_call_that_was_started_and_not_recorded_ends_the_turn_as_uncertain(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    run_id = await _killed_at("gate", settings, gates, broker, text="look gate last", team_id="steps")
    async with a_worker(settings, gates):
        reply = await broker.reply(run_id)
        after = await broker.reply(await broker.ask("s1", "another", team_id="steps"))
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "step_uncertain")
    assert "gate#1" in reply["error"]["message"]
    assert [gates.visits(name) for name in ("look", "gate", "last")] == [1, 1, 0]
    assert [run["status"] for run in await stored_runs(database, "s1")] == ["ERROR", "COMPLETED"]
    assert after["turn"] == 2


@pytest.mark.parametrize(
    ("leader", "asker", "gate"),
    [("leader-gate", "asker", "leader-gate-1"), ("leader", "asker-gate", "asker-gate-0")],
    ids=["leader", "member"],
)
async def test_a_team_s_model_requests_and_tool_calls_are_made_once_members_included(  # noqa: PLR0917
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    gates: Gates,
    leader: str,
    asker: str,
    gate: str,
) -> None:
    gates.open("leader-gate-0")
    team = "crew-stuck-leader" if gate.startswith("leader") else "crew-stuck-asker"
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "go", team_id=team)
        await gates.reached(gate)
        # Who works side by side with what waits at the gate has come to its end, too.
        await eventually(lambda: gates.visits("payer-1") == 1)
        await _recorded(database, "payer%/model.request#2")
        worker.kill()
        await worker.exited()
    gates.open(gate)
    async with a_worker(settings, gates):
        reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED"
    assert reply["content"] == f"{leader}: payer: receipt 3, {asker}: asked"
    calls = {
        name: gates.visits(name) for name in (f"{leader}-0", f"{leader}-1", "payer-0", "payer-1", f"{asker}-0", "pay")
    }
    assert calls == {name: 2 if name == gate else 1 for name in calls}
    assert await _state(database, "s1") == {"paid": 3}
    assert (reply["metrics"]["model_requests"], reply["metrics"]["total_tokens"]) == (5, 60)


async def _recorded(database: asyncpg.Connection, key: str) -> None:
    async with asyncio.timeout(20):
        while not await database.fetchval("select count(*) from ai.turn_steps where key like $1", key):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_people_are_told_at_which_step_a_turn_is(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        await broker.ask("s1", "look gate last", team_id="steps")
        await _recorded(database, "gate#1")
        await eventually(lambda: _start_recorded(database))
        for words in (["sessions", "who", "s1"], ["sessions", "who"]):
            code, out, err = await run_command(*words, environment=environment_of(settings))
            assert (code, err) == (0, "")
            assert out.rstrip().endswith("· step gate#1")
        gates.open("gate")


async def _start_recorded(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("select count(*) from ai.turn_attempts"))


async def test_a_resumed_turn_is_given_the_history_that_the_first_attempt_was_given(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        before = await broker.ask("s1", "first", team_id="steps")
        await broker.reply(before)
    run_id = await _killed_at("gate", settings, gates, broker, text="look gate?", team_id="steps")
    # Another program, which takes no lock, adds a run meanwhile.
    await database.execute(
        """insert into ai.agno_runs (run_id, session_id, run_type, team_id, status, run_index, run_data, created_at)
           values ('foreign', 's1', 'team', 'steps', 'COMPLETED', 1, '{"run_id": "foreign", "input": "x"}', 1)"""
    )
    context = await database.fetchval("select record from ai.turn_steps where run_id = $1 and seq = 0", run_id)
    assert json.loads(context)["history"] == [before]
    async with a_worker(settings, gates):
        assert (await broker.reply(run_id))["status"] == "COMPLETED"


async def test_what_kills_its_worker_again_and_again_is_stored_answered_and_kept_with_the_dead_letters(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    run_id, starts = "", 0
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "poison", team_id="killer")
        behind = await broker.ask("s1", "harmless", team_id="killer")
        # In flight beside it, each time: it must not die of it in the end.
        neighbour = await broker.ask("s2", "gate", team_id="gated")
        await worker.exited()
        starts += 1
    while True:
        if starts == 2:
            # Both are suspected by now, and run alone: whichever comes first, the other one waits for it.
            gates.open("gate")
        async with a_worker(settings, gates) as worker:
            done = asyncio.create_task(broker.reply(run_id))
            died = asyncio.create_task(worker.exited())
            await asyncio.wait([done, died], return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if not done.done():
                done.cancel()
                starts += 1
                continue
            reply = await done
            others = [await broker.reply(other) for other in (behind, neighbour)]
            letter = await broker.dead_letter()
        break
    assert (starts, gates.visits("killer-poison")) == (3, 3)
    assert (reply["status"], reply["error"]["code"], reply["attempt"]) == ("ERROR", "attempts_exhausted", 3)
    assert [other["status"] for other in others] == ["COMPLETED", "COMPLETED"]
    assert json.loads(letter.body)["run_id"] == run_id
    assert letter.headers["x-teamturn-code"] == "attempts_exhausted"
    assert [letter.headers[f"x-teamturn-{name}"] for name in ("attempts", "steps", "tokens")] == [3, 0, 0]
    runs = await stored_runs(database, "s1")
    assert [(run["run_id"], run["status"]) for run in runs] == [(run_id, "ERROR"), (behind, "COMPLETED")]


async def test_an_attempt_that_recorded_a_step_does_not_count(
    settings: Settings, broker: TestBroker, gates: Gates
) -> None:
    run_id = ""
    for number in range(1, 6):
        async with a_worker(settings, gates, attempts=2) as worker:
            await worker.consuming()
            if number == 1:
                run_id = await broker.ask("s1", "go", team_id="fruitful-killer")
            await worker.exited()
    async with a_worker(settings, gates, attempts=2):
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["content"], reply["attempt"]) == ("COMPLETED", "done", 6)


async def test_what_a_stopping_worker_ends_does_not_count(settings: Settings, broker: TestBroker, gates: Gates) -> None:
    run_id = ""
    for number in range(3):
        async with a_worker(settings, gates, attempts=1, drain_seconds=0.2) as worker:
            await worker.consuming()
            if not number:
                run_id = await broker.ask("s1", "gate", team_id="gated")
            await gates.reached("gate", times=number + 1)
            worker.terminate()
            await worker.exited()
    gates.open("gate")
    async with a_worker(settings, gates, attempts=1):
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["attempt"]) == ("COMPLETED", 4)


@pytest.mark.slow
async def test_a_frozen_worker_that_wakes_up_writes_no_step_beside_the_new_owner(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with a_worker(settings, gates) as frozen:
        await frozen.consuming()
        run_id = await broker.ask("s1", "first gate? last", team_id="steps")
        await gates.reached("gate")
        os.kill(frozen.process.pid, signal.SIGSTOP)
        async with a_worker(settings, gates):
            await gates.reached("gate", times=2)
            # It goes on in the middle of the step that the other one has begun anew, and comes to its end first.
            gates.open("gate")
            os.kill(frozen.process.pid, signal.SIGCONT)
            reply = await broker.reply(run_id, seconds=60)
            await frozen.logged("lane_lost")
    assert (reply["status"], reply["content"], reply["attempt"]) == ("COMPLETED", ["first", "gate", "last"], 2)
    assert [gates.visits(name) for name in ("first", "last")] == [1, 1]
    assert await _state(database, "s1") == {"made": ["first", "gate", "last"]}
    assert len(await stored_runs(database, "s1")) == 1


async def test_a_run_id_that_somebody_else_uses_too_has_a_journal_of_its_own(
    settings: Settings, broker: TestBroker, gates: Gates
) -> None:
    async with a_worker(settings, gates) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "look gate?", team_id="steps", user_id="ada")
        await gates.reached("gate")
        worker.kill()
        await worker.exited()
    gates.open("gate")
    async with a_worker(settings, gates):
        await broker.consume_results()
        await broker.ask("s2", "look", team_id="steps", user_id="eve", run_id=run_id)
        await eventually(lambda: len([one for one in broker.replies if one.message_id == run_id]) == 2)
    bodies = [json.loads(one.body) for one in broker.replies if one.message_id == run_id]
    by_user = {body["user_id"]: body for body in bodies}
    # One of them has the run_id in the end; the other is refused, and is given nothing of it.
    assert sorted(body["status"] for body in bodies) == ["COMPLETED", "REJECTED"]
    if by_user["eve"]["status"] == "COMPLETED":
        assert gates.visits("look") == 2
    else:
        assert by_user["eve"]["content"] is None


async def test_poison_that_was_cured_can_be_replayed_and_begins_anew(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates
) -> None:
    async with a_worker(settings, gates, attempts=1) as worker:
        await worker.consuming()
        run_id = await broker.ask("s1", "poison", team_id="killer")
        await worker.exited()
    async with a_worker(settings, gates, attempts=1):
        assert (await broker.reply(run_id))["error"]["code"] == "attempts_exhausted"
    broker.replies.clear()
    gates.open("cured")
    async with a_worker(settings, gates, attempts=1):
        code, out, err = await run_command("dead", "replay", run_id, environment=environment_of(settings))
        assert (code, err) == (0, ""), out
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["attempt"], reply["turn"]) == ("COMPLETED", 2, 2)
    runs = await stored_runs(database, "s1")
    assert [(run["run_id"], run["status"]) for run in runs] == [(f"{run_id}~1", "REGENERATED"), (run_id, "COMPLETED")]
    assert await broker.depth("dead") == 0
