"""Postgres away: consumption pauses, and what was finished keeps its result, however long it takes.

Its line is cut and refuses new connections, as a server that is restarted or failed over does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue, SecretStr
from structlog.testing import capture_logs
from yarl import URL

from tests.support.broker import TestBroker
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker import turn
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings
from worker.turns import kept_results
from worker.turns.kept_results import KeptResults
from worker.worker import Worker


class Held:
    """An executor whose turns wait, each until it is let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.attempts: list[int] = []
        self.ended: list[str] = []
        self.open = asyncio.Event()

        @executor("held")
        async def held(turn: Turn) -> JsonValue:
            self.started.append(turn.run_id)
            self.attempts.append(turn.attempt)
            await self.open.wait()
            turn.session_state["turns"] = turn.session_state.get("turns", 0) + 1
            self.ended.append(turn.run_id)
            return f"answer {turn.attempt}"

        self.executor = held


@pytest.fixture
async def line(settings: Settings) -> AsyncIterator[Proxy]:
    """The line to Postgres."""
    async with Proxy(settings.postgres_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def by_line(settings: Settings, line: Proxy) -> Settings:
    return settings.model_copy(update={"postgres_url": SecretStr(line.url)})


async def finished_while_away(
    held: Held, line: Proxy, worker: Worker, broker: TestBroker, database: asyncpg.Connection, **fields: Any
) -> str:
    """Have a turn end when Postgres is away and the worker has given its partitions up; return its run_id."""
    run_id = await broker.ask("s1", team_id="held", **fields)
    await eventually(lambda: held.started[-1:] == [run_id])
    await eventually(partial(is_recorded, database, run_id))
    line.is_down = True
    line.cut()
    await eventually(lambda: not worker.consumers.wanted)
    held.open.set()
    await eventually(lambda: held.ended[-1:] == [run_id])
    await eventually(lambda: line.refused >= 3)
    return run_id


async def is_recorded(database: asyncpg.Connection, run_id: str) -> bool:
    """Whether it is recorded that the run was started."""
    return bool(await database.fetchval("select count(*) from turn_attempts where run_id = $1", run_id))


async def test_a_turn_that_ends_meanwhile_is_committed_and_answered_when_it_is_back(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    async with worker_of(by_line, held.executor) as worker:
        run_id = await finished_while_away(held, line, worker, broker, database)
        line.is_down = False
        message = await broker.reply_message(run_id)
    assert held.attempts == [1], "it is not executed again"
    assert message.body == await database.fetchval("select reply from receipts")
    assert await database.fetchval("select session_data -> 'session_state' ->> 'turns' from agno_sessions") == "1"


async def test_those_behind_it_follow_in_order(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    async with worker_of(by_line, held.executor) as worker:
        first = await finished_while_away(held, line, worker, broker, database)
        asked = [first, *[await broker.ask("s1", team_id="held") for _ in range(3)]]
        line.is_down = False
        await broker.replies_of(asked)
    assert held.started == asked
    assert await database.fetchval("select array_agg(run_id order by run_index) from agno_runs") == asked


async def test_where_another_worker_has_the_request_by_then_it_is_stored_once(
    settings: Settings, by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held, other = Held(), Held()
    other.open.set()
    async with worker_of(by_line, held.executor) as worker:
        run_id = await broker.ask("s1", team_id="held")
        await eventually(lambda: held.started == [run_id])
        locking = asyncio.create_task(database.execute("select pg_advisory_lock(session_lock_key('s1'))"))
        await eventually(partial(someone_waits_for_a_lock, settings))
        line.is_down = True
        line.cut()
        async with worker_of(settings, other.executor) as taker:
            # It is cut off alone: the other one has the delivery, and waits for the session's lock.
            await eventually(lambda: len(taker.mailboxes) == 1)
            held.open.set()
            await eventually(lambda: held.ended == [run_id])
            line.is_down = False
            await eventually(lambda: worker.consumers.consuming == worker.consumers.wanted != frozenset())
            await locking
            await database.execute("select pg_advisory_unlock(session_lock_key('s1'))")
            reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED"
    assert await database.fetchval("select count(*) from agno_runs") == 1


async def someone_waits_for_a_lock(settings: Settings) -> bool:
    looking = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        waiting = """select count(*) from pg_locks where locktype = 'advisory' and not granted
                     and database = (select oid from pg_database where datname = current_database())"""
        return bool(await looking.fetchval(waiting))
    finally:
        await looking.close()


async def test_a_deadline_that_passes_meanwhile_is_not_held_against_it(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    async with worker_of(by_line, held.executor) as worker:
        deadline = datetime.now(UTC) + timedelta(seconds=3)
        run_id = await finished_while_away(held, line, worker, broker, database, deadline=deadline.isoformat())
        await eventually(lambda: datetime.now(UTC) > deadline)
        line.is_down = False
        assert (await broker.reply(run_id))["content"] == "answer 1"


async def test_a_session_that_others_wrote_meanwhile_has_its_turn_taken_again(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    held.open.set()
    async with worker_of(by_line, held.executor) as worker:
        await broker.reply(await broker.ask("s1", team_id="held"))
        held.open.clear()
        run_id = await finished_while_away(held, line, worker, broker, database)
        await database.execute(
            """update agno_sessions set turn_seq = 7, session_data = '{"session_state": {"turns": 41}}'"""
        )
        line.is_down = False
        reply = await broker.reply(run_id)
    assert (reply["content"], reply["turn"]) == ("answer 2", 8)
    assert await database.fetchval("select session_data -> 'session_state' ->> 'turns' from agno_sessions") == "42"


async def test_a_session_that_is_deleted_meanwhile_stays_deleted(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    held.open.set()
    async with worker_of(by_line, held.executor) as worker:
        await broker.reply(await broker.ask("s1", team_id="held"))
        held.open.clear()
        run_id = await finished_while_away(held, line, worker, broker, database)
        await database.execute("delete from agno_sessions")
        line.is_down = False
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "session_deleted")
    assert await database.fetchval("select count(*) from agno_sessions") == 0
    assert held.attempts == [1, 1]


async def test_another_worker_s_attempt_that_came_to_nothing_does_not_have_it_taken_again(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    async with worker_of(by_line, held.executor) as worker:
        run_id = await finished_while_away(held, line, worker, broker, database)
        await database.execute("update turn_attempts set attempts = 2, worker = 'other' where run_id = $1", run_id)
        line.is_down = False
        assert (await broker.reply(run_id))["content"] == "answer 1"
    assert held.attempts == [1]


async def test_after_the_stated_time_the_result_is_dropped_and_the_turn_taken_again(
    by_line: Settings,
    line: Proxy,
    broker: TestBroker,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held()
    monkeypatch.setattr(turn, "KeptResults", lambda: KeptResults(kept_for=timedelta(seconds=1)))
    assert timedelta(hours=1) == kept_results.KEPT_FOR
    with capture_logs() as logged:
        async with worker_of(by_line, held.executor) as worker:
            run_id = await finished_while_away(held, line, worker, broker, database)
            await eventually(lambda: any(event["event"] == "kept_result_dropped" for event in logged))
            line.is_down = False
            assert (await broker.reply(run_id))["content"] == "answer 2"


async def test_a_call_that_is_made_meanwhile_is_neither_made_again_nor_called_uncertain(
    by_line: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    calls: list[str] = []
    open_again = asyncio.Event()

    async def pay() -> JsonValue:
        calls.append("pay")
        await open_again.wait()
        return "receipt"

    @executor("pays")
    async def pays(turn: Turn) -> JsonValue:
        paid = await turn.step("pay", pay)
        return [paid, await turn.step("thank", lambda: calls.append("thank"))]

    async with worker_of(by_line, pays) as worker:
        run_id = await broker.ask("s1", team_id="pays")
        await eventually(lambda: calls == ["pay"])
        line.is_down = True
        line.cut()
        await eventually(lambda: not worker.consumers.wanted)
        open_again.set()
        line.is_down = False
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["content"], reply["attempt"]) == ("COMPLETED", ["receipt", None], 2)
    assert calls == ["pay", "thank"]
    assert await database.fetchval("select count(*) from turn_steps") == 0


async def test_attempts_that_only_postgres_ended_are_not_fruitless(
    by_line: Settings, line: Proxy, broker: TestBroker
) -> None:
    attempts: list[int] = []
    goes_on = asyncio.Event()

    @executor("steps")
    async def steps(turn: Turn) -> JsonValue:
        attempts.append(turn.attempt)
        await goes_on.wait()
        await turn.step(f"step of attempt {turn.attempt}", lambda: None)
        return "done"

    async with worker_of(by_line.model_copy(update={"max_attempts": 2}), steps) as worker:
        run_id = await broker.ask("s1", team_id="steps")
        for times in range(1, 5):
            await eventually(partial(has_length, attempts, times))
            line.is_down = True
            line.cut()
            await eventually(lambda: not worker.consumers.wanted)
            goes_on.set()
            await eventually(lambda: line.refused >= 3)
            goes_on.clear()
            line.is_down = False
        goes_on.set()
        reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED", reply["error"]
    assert len(attempts) == 5


def has_length(found: list[int], length: int) -> bool:
    return len(found) == length


# --- Postgres is there, and takes no writes ---


async def refuse_rows(database: asyncpg.Connection, sqlstate: str, table: str = "agno_runs") -> None:
    """Have Postgres refuse to store rows with an error of its own, as where its disk is full (53100)."""
    await database.execute(
        f"""create function refuse() returns trigger language plpgsql as $$
            begin raise exception 'as a test wants it' using errcode = '{sqlstate}'; end $$;
            create trigger refuse before insert on {table} for each statement execute function refuse()"""
    )


async def take_rows_again(database: asyncpg.Connection, table: str = "agno_runs") -> None:
    await database.execute(f"drop trigger refuse on {table}")


async def test_with_a_full_disk_consumption_pauses_and_what_was_finished_is_stored_when_there_is_room(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    held.open.set()
    await refuse_rows(database, "53100")
    with capture_logs() as logged:
        async with worker_of(settings, held.executor) as worker:
            first = await broker.ask("s1", team_id="held")
            await eventually(lambda: [event["event"] for event in logged].count("write_retried") >= 1)
            await eventually(lambda: not worker.consumers.wanted)
            asked = [first, *[await broker.ask(f"s{number}", team_id="held") for number in range(1, 4)]]
            await eventually(lambda: [event["event"] for event in logged].count("write_retried") >= 3)
            assert held.started == [first], "what could not be stored is not started"
            await take_rows_again(database)
            await broker.replies_of(asked)
    assert sorted(held.started) == sorted(asked)
    (given_up,) = [event for event in logged if event["event"] == "partitions_given_up"]
    assert "disk is full" in given_up["reason"]


async def test_a_full_disk_that_outlasts_the_turn_timeout_fails_no_turn_that_waits_for_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    @executor("pays")
    async def pays(turn: Turn) -> JsonValue:
        await turn.step("pay", lambda: "receipt")
        return turn.attempt

    await refuse_rows(database, "53100", "turn_steps")
    with capture_logs() as logged:
        async with worker_of(settings.model_copy(update={"turn_timeout": 1.0}), pays) as worker:
            run_id = await broker.ask("s1", team_id="pays")
            await eventually(lambda: [event["event"] for event in logged].count("write_retried") >= 4)
            problem = worker.condition().problem()
            await take_rows_again(database, "turn_steps")
            reply = await broker.reply(run_id)
    assert (reply["status"], reply["content"]) == ("COMPLETED", 1)
    assert problem is not None
    assert "disk is full" in problem


async def test_a_server_that_has_become_a_stand_by_is_left_and_what_was_finished_is_stored_by_the_next(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    held.open.set()
    await refuse_rows(database, "25006")
    with capture_logs() as logged:
        async with worker_of(settings, held.executor):
            run_id = await broker.ask("s1", team_id="held")
            await eventually(lambda: any(event["event"] == "lane_reconnected" for event in logged))
            await take_rows_again(database)
            await broker.reply(run_id)
    assert held.started == [run_id]


async def test_while_only_a_stand_by_answers_nothing_is_consumed_and_nothing_failed(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    name = await database.fetchval("select current_database()")
    async with worker_of(settings, held.executor) as worker:
        first = await broker.ask("s1", team_id="held")
        await eventually(lambda: held.started == [first])
        await database.execute(f'alter database "{name}" set default_transaction_read_only = on')
        await database.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where application_name like 'teamturn lane%' and datname = current_database()"""
        )
        await eventually(lambda: not worker.consumers.wanted)
        held.open.set()
        await eventually(lambda: held.ended == [first])
        second = await broker.ask("s2", team_id="held")
        await database.execute(f'alter database "{name}" set default_transaction_read_only = off')
        assert (await broker.reply(first))["attempt"] == 1
        assert (await broker.reply(second))["attempt"] == 1
    assert held.started == [first, second]


async def test_a_row_that_somebody_else_has_locked_holds_up_its_own_turn_and_no_other(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    held.open.set()
    async with worker_of(settings, held.executor) as worker:
        await broker.reply(await broker.ask("s1", team_id="held"))
        async with database.transaction():
            await database.execute("select from agno_sessions where session_id = 's1' for update")
            locked = await broker.ask("s1", team_id="held")
            await eventually(lambda: held.ended[-1:] == [locked])
            for number in range(2, 6):
                await broker.reply(await broker.ask(f"s{number}", team_id="held"))
            assert worker.condition().problem() is None
        assert (await broker.reply(locked))["attempt"] == 1
    assert held.started.count(locked) == 1


async def test_with_several_servers_in_its_address_the_worker_goes_to_the_one_that_takes_writes(
    settings: Settings, line: Proxy, broker: TestBroker, database: asyncpg.Connection
) -> None:
    held = Held()
    address = URL(settings.postgres_url.get_secret_value())
    async with Proxy(str(address)) as other:
        both = f"127.0.0.1:{URL(line.url).port},127.0.0.1:{URL(other.url).port}"
        url = f"postgresql://{address.raw_user}:{address.raw_password}@{both}{address.path}"
        other.is_down = True
        async with worker_of(settings.model_copy(update={"postgres_url": SecretStr(url)}), held.executor):
            run_id = await broker.ask("s1", team_id="held")
            await eventually(lambda: held.started == [run_id])
            line.is_down, other.is_down = True, False
            line.cut()
            held.open.set()
            assert (await broker.reply(run_id))["attempt"] == 1
            assert line.refused
    assert held.started == [run_id]
    assert await is_stored(database, run_id)


async def is_stored(database: asyncpg.Connection, run_id: str) -> bool:
    return bool(await database.fetchval("select count(*) from agno_runs where run_id = $1", run_id))
