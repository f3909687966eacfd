"""A fleet of workers in this process, over the real broker and database: who is a member, and who consumes what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from threading import Thread
from typing import Any

import asyncpg
import pytest
from aio_pika import Message

import sql
from schemas.requests import RunRequest
from tests.support.broker import TestBroker
from tests.support.fleet import Gate, Looking, a_session_of, echo
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker import wiring
from worker.errors import StoreUnavailable
from worker.fleet.membership import Membership
from worker.fleet.view import session_holders
from worker.replies.publisher import Publisher
from worker.sessions.lanes import Lane
from worker.sessions.store import SessionStore
from worker.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitions": 4})


@pytest.fixture
def looking(settings: Settings, database: asyncpg.Connection, broker: TestBroker) -> Looking:
    return Looking(settings, database, broker)


async def no(found: Callable[[], Awaitable[Sequence[object]]]) -> bool:
    return not await found()


# --- membership ---


async def test_a_worker_is_a_member_as_long_as_it_runs(settings: Settings, looking: Looking) -> None:
    async with worker_of(settings, echo) as worker:
        await looking.settled(worker)
        assert len(await looking.members()) == 1
    assert await looking.members() == []


async def test_who_drains_is_no_member_while_its_turns_finish(
    settings: Settings, broker: TestBroker, looking: Looking
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        draining = asyncio.create_task(worker.drain())
        await eventually(partial(no, looking.members))
        assert not draining.done()
        gate.open.set()
        await draining


async def test_fleets_of_other_prefixes_are_other_fleets(settings: Settings, looking: Looking) -> None:
    others = settings.model_copy(update={"prefix": f"{settings.prefix}-other"})
    async with (
        worker_of(settings, echo) as worker,
        worker_of(others, echo) as other,
        TestBroker(settings.amqp_url.get_secret_value(), others.prefix) as their_broker,
    ):
        await looking.settled(worker)
        await eventually(lambda: len(other.consumers.consuming) == settings.partitions + 1)
        assert len(await looking.members()) == 1
        await their_broker.delete_everything(settings.partitions)


# --- who consumes what ---


async def test_a_join_and_a_leave_move_no_partition_that_need_not_move(settings: Settings, looking: Looking) -> None:
    async with worker_of(settings, echo) as first:
        await looking.settled(first)
        (one,) = await looking.members()
        assert await looking.owners() == [one] * 4
        async with worker_of(settings, echo) as second:
            await looking.settled(first, second)
            shared = await looking.owners()
            assert sorted(map(shared.count, set(shared))) == [2, 2]
            async with worker_of(settings, echo) as third:
                await looking.settled(first, second, third)
                moved = [number for number, owner in enumerate(await looking.owners()) if owner != shared[number]]
                assert len(moved) == 1
            await looking.settled(first, second)
        await looking.settled(first)
        assert await looking.owners() == [one] * 4


async def test_an_assignment_is_recorded_only_over_the_one_that_was_seen(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async def recorded(seen: int | None, owner: int) -> bool:
        return bool(await database.fetchval(sql.RECORD_ASSIGNMENT, settings.prefix, seen, [owner]))

    assert [await recorded(None, 1), await recorded(None, 2), await recorded(1, 3), await recorded(1, 4)] == [
        True,
        False,
        True,
        False,
    ]
    assert await database.fetchval("select owners from fleet_assignments") == [3]


async def test_a_worker_whose_first_lane_is_lost_has_its_share_again(
    settings: Settings, database: asyncpg.Connection, looking: Looking
) -> None:
    async with worker_of(settings, echo) as first, worker_of(settings, echo) as second:
        await looking.settled(first, second)
        member = (await looking.members())[0]
        await database.fetch(
            "select pg_terminate_backend(pid) from fleet_members($1) where member = $2", settings.prefix, member
        )
        await looking.settled(first, second)


@pytest.mark.parametrize("steps", range(6))
async def test_a_lane_that_postgres_has_just_ended_is_lost_whatever_the_moment(settings: Settings, steps: int) -> None:
    """As when a worker that was frozen goes on: what Postgres said meanwhile is read when statements are sent."""
    lane = Lane(settings.postgres_url, settings.db_schema, 0)
    membership = Membership(lane, settings)
    await lane.open()
    running = asyncio.create_task(lane.run())
    try:
        assert await membership.owned() == frozenset(range(settings.partitions))
        # In another loop, while this one stands still.
        ending = Thread(target=lambda: asyncio.run(end_lanes(settings)))
        ending.start()
        ending.join()
        for _ in range(steps):
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await membership.owned()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def end_lanes(settings: Settings) -> None:
    database = await asyncpg.connect(settings.postgres_url.get_secret_value())
    await database.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where application_name like 'teamturn lane%' and datname = current_database()"
    )
    await database.close()


# --- what is seen from outside ---


async def backlog_is(numbers: list[int], looking: Looking) -> bool:
    return [one.backlog for one in (await looking.state()).partitions] == numbers


async def starts_recorded(number: int, database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("select count(*) from turn_attempts") == number)


async def test_what_waits_is_the_backlog_of_its_partition(
    settings: Settings, broker: TestBroker, looking: Looking
) -> None:
    gate = Gate()
    narrow = settings.model_copy(update={"prefetch": 1})
    session = a_session_of(2, settings)
    async with worker_of(narrow, gate.executor) as worker:
        await looking.settled(worker)
        for _ in range(4):
            await broker.ask(session, team_id="gate")
        await eventually(lambda: len(gate.started) == 1)
        await eventually(partial(backlog_is, [0, 0, 3, 0], looking))
        gate.open.set()
        await eventually(partial(backlog_is, [0, 0, 0, 0], looking))


async def test_a_session_is_held_by_who_executes_its_turn_and_afterwards_by_nobody(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        asked = {session: await broker.ask(session, team_id="gate") for session in ("first", "second")}
        await eventually(lambda: len(gate.started) == len(asked))
        await eventually(partial(starts_recorded, len(asked), database))
        every = await session_holders(database, None)
        assert {holder.session_id: holder.run_id for holder in every} == asked
        assert [holder.since for holder in every] == sorted(holder.since for holder in every if holder.since)
        (one,) = await session_holders(database, "first")
        assert one == next(holder for holder in every if holder.session_id == "first")
        gate.open.set()
        await broker.replies_of(list(asked.values()))
        await eventually(partial(no, partial(session_holders, database, "first")))
        assert await session_holders(database, None) == []


# --- the lock table ---


async def test_turns_beyond_the_share_of_the_lock_table_wait_and_are_all_taken(
    settings: Settings, database: asyncpg.Connection
) -> None:
    store = SessionStore(settings.postgres_url, settings.db_schema, locks=5)
    await store.open()
    running = asyncio.create_task(store.run())
    held: list[int] = []

    async def turn(number: int) -> None:
        request = RunRequest(run_id=f"r{number}", session_id=f"s{number}", team_id="echo", input="hi")
        async with store.claimed(request, 0), one_at_a_time:
            held.append(await database.fetchval("select count(*) from pg_locks where locktype = 'advisory'"))

    one_at_a_time = asyncio.Lock()
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(*(turn(number) for number in range(60)))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(held) == 60
    assert max(held) == store.lock_budget.limit == 4


async def test_the_share_of_the_lock_table_is_the_whole_fleet_s(
    settings: Settings, looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[SessionStore] = []

    class KeptStore(SessionStore):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            stores.append(self)

    monkeypatch.setattr(wiring, "SessionStore", KeptStore)
    async with worker_of(settings, echo) as first:
        await looking.settled(first)
        all_of_it = stores[0].lock_budget.limit
        async with worker_of(settings, echo) as second:
            await looking.settled(first, second)
            await eventually(lambda: [store.lock_budget.limit for store in stores] == [all_of_it // 2] * 2)
        await eventually(lambda: stores[0].lock_budget.limit == all_of_it)


# --- replies beside the turns ---


HELD = "the run whose reply is held up"


@pytest.fixture
def let_through(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The reply to the run HELD is held up until this is set."""
    publish, let = Publisher._publish_once, asyncio.Event()

    async def held_up(publisher: Publisher, message: Message, *where: str, **how: Any) -> None:
        if where[0].endswith(".results") and message.message_id == HELD:
            await let.wait()
        await publish(publisher, message, *where, **how)

    monkeypatch.setattr(Publisher, "_publish_once", held_up)
    return let


async def stored_are(run_ids: list[str], database: asyncpg.Connection) -> bool:
    stored = await database.fetchval("select array_agg(run_id order by run_index) from agno_runs")
    return bool(stored == run_ids)


async def test_the_next_turn_begins_when_the_one_before_is_stored_though_its_reply_is_held_up(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, let_through: asyncio.Event
) -> None:
    async with worker_of(settings, echo):
        asked = [await broker.ask("s1", run_id=run_id) for run_id in (HELD, "second", "third", "fourth")]
        await eventually(partial(stored_are, asked, database))
        let_through.set()
        await broker.replies_of(asked)
    assert [reply.message_id for reply in broker.replies] == asked


async def test_a_reply_that_is_held_up_holds_up_no_other_session(
    settings: Settings, broker: TestBroker, let_through: asyncio.Event
) -> None:
    async with worker_of(settings, echo):
        held = [await broker.ask("s1", run_id=run_id) for run_id in (HELD, "second")]
        await broker.reply(await broker.ask("s2"))
        assert not {reply.message_id for reply in broker.replies} & set(held)
        let_through.set()
        await broker.replies_of(held)


async def test_a_reply_that_is_held_up_while_its_partition_moves_is_sent_by_the_new_owner(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, let_through: asyncio.Event
) -> None:
    async with worker_of(settings, echo) as leaving:
        asked = [await broker.ask("s1", run_id=run_id) for run_id in (HELD, "second", "third")]
        await eventually(partial(stored_are, asked, database))
        for task in leaving.consuming:
            task.cancel()
        await asyncio.gather(*leaving.consuming, return_exceptions=True)
        await leaving.fleet.leave()
        async with worker_of(settings, echo):
            let_through.set()
            await broker.replies_of(asked)
            await leaving.replies.drained()
            await broker.reply(await broker.ask("s1"))
    # The one that was under way can come twice; a consumer drops the second by its message_id.
    sent = [(str(reply.message_id), reply.body) for reply in broker.replies]
    assert list(dict.fromkeys(run_id for run_id, _ in sent))[: len(asked)] == asked
    assert len(set(sent)) == len(asked) + 1, "with the same bytes"
