"""Workers join and leave at any time: sessions keep their order, and nobody waits for long."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from schemas.fleet import FleetState, SessionHolder
from tests.acceptance.stage import QUICKER, Gates, staged, stored_runs, two_at_a_time
from tests.support.broker import TestBroker
from tests.support.fleet import Crew, Scene, Story, a_session_of, under_load
from tests.support.load import partition_of, sessions_of
from tests.support.stories import STORIES
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess, environment_of, run_command
from worker.sandbox import Sandbox
from worker.settings import Settings

SOON_SECONDS = 3
"""Within which what a worker consumed that was killed, or gave it up, is consumed again."""
HELD = "the held one"
LONGEST_TURN_SECONDS = 0.3
"""Of the executor `unhurried`."""


PLAYED = ("joined", "told to leave", "killed", "rolled")
"""The stories here; `test_cut_off.py` has those that take their time."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(sandbox: Sandbox, template: str) -> dict[str, Story | BaseException]:
    """How each of them ended."""

    async def played(play: Callable[[Scene], Awaitable[Story]]) -> Story | BaseException:
        try:
            async with under_load(sandbox, template) as scene:
                return await play(scene)
        except Exception as error:  # noqa: BLE001 - the test that asks for the story fails with it
            return error

    ends = await asyncio.gather(*(played(STORIES[name]) for name in PLAYED))
    return dict(zip(PLAYED, ends, strict=True))


@pytest.fixture
def story(stories: dict[str, Story | BaseException], request: pytest.FixtureRequest) -> Story:
    end = stories[request.param]
    if isinstance(end, BaseException):
        raise end
    return end


@pytest.mark.parametrize("story", PLAYED, indirect=True)
def test_every_session_keeps_its_order_and_each_request_its_one_run_and_answer(story: Story) -> None:
    assert story.mistakes == []


@pytest.mark.parametrize("story", PLAYED, indirect=True)
def test_no_partition_is_without_a_consumer_for_long(story: Story) -> None:
    print(f"longest pauses by partition: {story.pauses}")
    assert max(story.pauses.values()) < SOON_SECONDS


@pytest.mark.parametrize("story", PLAYED, indirect=True)
def test_no_session_waits_for_more_than_that_and_its_own_turn(story: Story) -> None:
    print(f"longest pauses by session: {story.session_pauses}")
    assert max(story.session_pauses.values()) < SOON_SECONDS + LONGEST_TURN_SECONDS


@pytest.mark.parametrize("story", ["told to leave", "killed"], indirect=True)
def test_the_partitions_of_who_stays_go_on(story: Story) -> None:
    assert max(story.others.values()) < SOON_SECONDS


@pytest.mark.parametrize("story", ["joined", "told to leave", "rolled"], indirect=True)
def test_no_turn_is_taken_twice_when_a_worker_comes_or_goes(story: Story) -> None:
    assert story.repeated_turns == set()


@pytest.mark.parametrize("story", ["told to leave", "rolled"], indirect=True)
def test_a_worker_that_is_told_to_leave_exits_0(story: Story) -> None:
    assert set(story.exit_codes) == {0}


# --- a turn that runs while its partition moves ---


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.fixture
async def crew(settings: Settings, gates: Gates) -> AsyncIterator[Crew]:
    async with Crew(settings, gates) as crew:
        yield crew


async def test_a_turn_goes_on_when_its_partition_moves_and_is_answered_once_by_the_new_owner(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates, crew: Crew
) -> None:
    old = await crew.hire()
    sessions = [a_session_of(partition, settings) for partition in range(settings.partitions)]
    held = {session: await broker.ask(session, "gate", team_id="gated") for session in sessions}
    behind = {session: [await broker.ask(session, "open", team_id="gated") for _ in range(3)] for session in sessions}
    gates.open("open")
    await gates.reached("gate", times=len(sessions))
    new = await crew.hire()
    await crew.settled(old, new)
    moved = {sessions[partition] for partition in await crew.partitions_of(new)}
    gates.open("gate")
    asked = [*held.values(), *itertools.chain(*behind.values())]
    await broker.replies_of(asked)
    assert Counter(reply.message_id for reply in broker.replies) == Counter(asked), "each once"
    assert gates.visits("gate") == len(sessions), "each turn was taken once"
    assert {event["run_id"] for event in new.events("turn_replayed")} == {held[session] for session in moved}
    for session in sessions:
        assert [run["run_id"] for run in await stored_runs(database, session)] == [held[session], *behind[session]]


async def start_recorded(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("select count(*) from ai.turn_attempts"))


async def test_a_turn_of_a_killed_worker_is_taken_again_by_another_before_those_behind_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates, crew: Crew
) -> None:
    dying, living = await asyncio.gather(crew.hire(), crew.hire())
    await crew.settled(dying, living)
    (partition,) = await crew.partitions_of(dying)
    session = a_session_of(partition, settings)
    asked = [await broker.ask(session, name, team_id="gated") for name in ("gate", "open")]
    gates.open("open")
    await eventually(partial(start_recorded, database))
    dying.kill()
    await gates.reached("gate", times=2)
    gates.open("gate")
    assert [(await broker.reply(run_id))["attempt"] for run_id in asked] == [2, 1]
    assert [run["run_id"] for run in await stored_runs(database, session)] == asked


async def test_a_worker_more_than_there_are_partitions_stands_by_and_takes_over_from_one_that_dies(
    settings: Settings, broker: TestBroker, crew: Crew
) -> None:
    dying, other = await asyncio.gather(crew.hire(), crew.hire())
    await crew.settled(dying, other)
    standing_by = await crew.hire()
    (partition,) = await crew.partitions_of(dying)
    assert await crew.partitions_of(standing_by) == []
    dying.kill()
    await crew.settled(other, standing_by)
    assert await crew.partitions_of(standing_by) == [partition]
    await broker.reply(await broker.ask(a_session_of(partition, settings)))


# --- a hot session ---

HOT_REQUESTS = 600


async def test_a_hot_session_holds_up_its_partition_by_the_prefetch_window_and_no_other(
    settings: Settings, broker: TestBroker, gates: Gates, crew: Crew
) -> None:
    hot, near, far = sessions_of(0, settings.partitions, number=3)
    elsewhere = a_session_of(1, settings)
    await crew.hire()
    gates.open("open")
    asked = [await broker.ask(hot, "gate", team_id="gated")]
    within_the_window = await broker.ask(near)
    asked += await asyncio.gather(
        *(broker.ask(hot, "open", team_id="gated", run_id=f"hot-{one:04}") for one in range(1, HOT_REQUESTS))
    )
    behind_it = await broker.ask(far)
    of_another_partition = await broker.ask(elsewhere)
    # Nothing of the hot session is done yet, and will not be.
    await broker.replies_of([within_the_window, of_another_partition])
    gates.open("gate")
    await broker.replies_of([behind_it, *asked])
    answered = [reply.message_id for reply in broker.replies]
    after_it = set(asked).intersection(answered[answered.index(behind_it) :])
    assert len(after_it) > settings.prefetch // 2, "it came as soon as it was in the window"
    assert [reply.message_id for reply in broker.replies if reply.message_id in set(asked)] == asked


# --- looking at it ---

COMMANDS = {
    "fleet": ["fleet"],
    "fleet --json": ["fleet", "--json"],
    "who": ["sessions", "who"],
    "who --json": ["sessions", "who", "--json"],
    "who it": ["sessions", "who", HELD],
    "who it --json": ["sessions", "who", HELD, "--json"],
    "who another": ["sessions", "who", "another"],
}


@dataclass(frozen=True)
class Shown:
    """What the commands show of a fleet of two, of which one executes a turn."""

    ended: dict[str, tuple[int, str, str]]
    workers: list[str]
    executing: str
    run_id: str
    settings: Settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("gates")
    async with (
        staged(sandbox, template, folder) as stage,
        Crew(stage.settings, stage.gates) as crew,
    ):
        second = await crew.hire()
        await crew.settled(stage.worker, second)
        run_id = await stage.broker.ask(HELD, "gate", team_id="gated")
        await eventually(partial(start_recorded, stage.database))
        own = partition_of(HELD, stage.settings.partitions)
        executing = second if own in await crew.partitions_of(second) else stage.worker
        environment = environment_of(stage.settings, **QUICKER, COLUMNS="80", NO_COLOR="1")
        ended = await two_at_a_time(
            {name: partial(run_command, *words, environment=environment) for name, words in COMMANDS.items()}
        )
        stage.gates.open("gate")
        return Shown(
            ended=ended,
            workers=sorted(name_of(worker) for worker in (stage.worker, second)),
            executing=name_of(executing),
            run_id=run_id,
            settings=stage.settings,
        )


def name_of(worker: WorkerProcess) -> str:
    return f"{socket.gethostname()}:{worker.process.pid}"


def test_fleet_shows_each_worker_with_its_partitions_and_what_it_runs(shown: Shown) -> None:
    state = FleetState.model_validate_json(shown.ended["fleet --json"][1])
    assert sorted(one.worker for one in state.workers) == shown.workers
    assert sorted(one.partitions for one in state.workers) == [[0], [1]]
    assert {one.worker: one.running for one in state.workers if one.running} == {shown.executing: 1}
    assert state.oldest_unfinished is not None


def test_fleet_shows_each_partition_with_its_owner_and_backlog(shown: Shown) -> None:
    state = FleetState.model_validate_json(shown.ended["fleet --json"][1])
    partitions = [(one.partition, one.queue, one.consumers, one.backlog) for one in state.partitions]
    assert partitions == [(number, f"{shown.settings.prefix}.requests.{number}", 1, 0) for number in (0, 1)]
    assert sorted(one.owner or "" for one in state.partitions) == shown.workers


def test_fleet_shows_people_a_table_that_is_not_too_wide(shown: Shown) -> None:
    code, out, err = shown.ended["fleet"]
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if len(line.rstrip()) > 80] == []
    assert all(worker in out for worker in shown.workers)


@pytest.mark.parametrize("command", ["who --json", "who it --json"])
def test_who_says_which_worker_executes_which_run(shown: Shown, command: str) -> None:
    holder = SessionHolder.model_validate_json(shown.ended[command][1])
    assert (holder.session_id, holder.worker, holder.run_id) == (HELD, shown.executing, shown.run_id)
    assert holder.attempt == 1


@pytest.mark.parametrize("command", ["who", "who it"])
def test_who_says_it_to_people_in_a_line(shown: Shown, command: str) -> None:
    code, out, err = shown.ended[command]
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert HELD in line
    assert shown.executing in line
    assert shown.run_id in line


def test_who_of_a_session_that_nobody_holds_exits_1(shown: Shown) -> None:
    code, out, err = shown.ended["who another"]
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
