"""Changing the partitions of a prefix, on a real RabbitMQ and Postgres, while producers go on publishing."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import pytest
from aiormq import spec

from tests.support.broker import TestBroker, slot
from tests.support.fleet import echo
from tests.support.load import sessions_of
from tests.support.numbered import Numbered, first_of_each, taken
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of, worker_of
from worker.broker import connected
from worker.cli.topology import _repartition
from worker.errors import StartupError, StoreUnavailable
from worker.fleet.agreement import Agreement, agree, agreement_of, agrees
from worker.fleet.view import queue_depth
from worker.intake.detour import Detour, unbind_slots
from worker.intake.topology import Queue, Topology, _existing_queue, apply, check_partitions, verify
from worker.operations import repartition
from worker.operations.moving import Mover, _Passage
from worker.settings import Settings

SESSIONS = [f"s-{number}" for number in range(24)]
_UNHURRIED = 0.02
_LONG_STORY = 0.1
_MOST_PARTITIONS = 16
_STORED = "select session_id, array_agg(run_id order by run_index) as runs from ai.agno_runs group by session_id"


@pytest.fixture(autouse=True)
def settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repartition, "_SETTLED_SECONDS", 0.05)


@asynccontextmanager
async def a_prefix_of(settings: Settings, database: asyncpg.Connection, partitions: int) -> AsyncIterator[Settings]:
    """A prefix as its first worker leaves it, and nothing left of it after the block."""
    lane = settings.model_copy(update={"partitions": partitions})
    await agree(database, lane)
    async with connected(lane.amqp_url, name="test") as broker:
        await apply(broker.amqp, Topology(lane.prefix, partitions))
        try:
            yield lane
        finally:
            names = Topology(lane.prefix, _MOST_PARTITIONS)
            detour = Detour(names)
            channel = await broker.amqp.channel()
            for queue in (detour.held, detour.moved, detour.gate, *(one.name for one in names.queues())):
                await channel.queue_delete(queue)
            for exchange in (detour.exchange, detour.slots, *(one.name for one in names.exchanges())):
                await channel.exchange_delete(exchange)


def queues_of(settings: Settings, partitions: int) -> list[str]:
    return [Topology(settings.prefix, partitions).partition(number) for number in range(partitions)]


async def there(settings: Settings) -> set[str]:
    """The request queues and those of the detour that RabbitMQ has."""
    names = Topology(settings.prefix, _MOST_PARTITIONS)
    detour = Detour(names)
    async with connected(settings.amqp_url, name="test") as broker:
        candidates = [*queues_of(settings, _MOST_PARTITIONS), detour.held, detour.moved, detour.gate]
        return {one for one in candidates if (await queue_depth(broker.amqp, one))[0] is not None}


# --- nothing is lost, and nothing reordered ---


@pytest.mark.parametrize(("before", "after"), [(16, 5), pytest.param(5, 16, marks=pytest.mark.slow)])
async def test_with_producers_at_it_every_session_s_requests_are_in_its_new_queue_in_order(
    settings: Settings, database: asyncpg.Connection, before: int, after: int
) -> None:
    async with (
        a_prefix_of(settings, database, before) as lane,
        Numbered(lane, SESSIONS, pause_seconds=_UNHURRIED) as producers,
    ):
        await producers.flow(20)
        await _repartition(lane, after, None, dry_run=False)
        await producers.flow(2)
        await producers.stop()
        assert await there(lane) == set(queues_of(lane, after))
        assert await first_of_each(lane, queues_of(lane, after)) == producers.published


async def test_workers_with_the_new_number_execute_each_request_once_and_in_order(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with (
        a_prefix_of(settings, database, 4) as lane,
        Numbered(lane, SESSIONS[:8], pause_seconds=_UNHURRIED) as producers,
    ):
        async with worker_of(lane, echo):
            await producers.flow(5)
        await _repartition(lane, 8, 64, dry_run=False)
        changed = lane.model_copy(update={"partitions": 8, "prefetch": 64})
        async with worker_of(changed, echo):
            await producers.flow(5)
            await producers.stop()

            async def all_are_stored() -> bool:
                return bool(await database.fetchval("select count(*) from ai.agno_runs") == producers.total)

            await eventually(all_are_stored)
        assert {row["session_id"]: row["runs"] for row in await database.fetch(_STORED)} == producers.published


class _Killed(Exception):
    """The command ends here, as if it were killed."""


def die_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command die when it has taken so many steps."""
    left = steps

    def mortal(step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def step_and_die(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            result = await step(*arguments, **options)
            left -= 1
            if left <= 0:
                raise _Killed
            return result

        return step_and_die

    for name in ("declare", "hold", "declare_new", "shut", "open", "leave"):
        monkeypatch.setattr(Detour, name, mortal(getattr(Detour, name)))
    monkeypatch.setattr(Mover, "drain", mortal(Mover.drain))
    monkeypatch.setattr(_Passage, "_settle", mortal(_Passage._settle))
    monkeypatch.setattr(repartition, "unbind_slots", mortal(unbind_slots))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 13))])
async def test_killed_again_and_again_it_goes_on_where_it_was(
    settings: Settings, database: asyncpg.Connection, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    before, after = chance.choice([(3, 5), (5, 3)])
    deaths = 0
    async with (
        a_prefix_of(settings, database, before) as lane,
        Numbered(lane, SESSIONS, pause_seconds=_LONG_STORY) as producers,
    ):
        await producers.flow(10)
        # Ever later, so that it comes to an end: each of the first steps is the last one of a run.
        while True:
            with pytest.MonkeyPatch.context() as patched:
                die_after(1 + deaths + chance.randrange(3), patched)
                with suppress(_Killed):
                    await _repartition(lane, after, None, dry_run=False)
                    break
            deaths += 1
        await producers.flow(2)
        await producers.stop()
        assert deaths > 10
        assert await there(lane) == set(queues_of(lane, after))
        assert await first_of_each(lane, queues_of(lane, after)) == producers.published


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_a_process_that_is_killed_at_random_moments_goes_on_when_it_is_run_again(
    settings: Settings, database: asyncpg.Connection, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    words = ("-m", "worker", "topology", "repartition", "--partitions", "7")
    async with (
        a_prefix_of(settings, database, 12) as lane,
        Numbered(lane, SESSIONS, pause_seconds=_LONG_STORY) as producers,
    ):
        await producers.flow(20)
        for deaths in count():
            process = await asyncio.create_subprocess_exec(
                sys.executable, *words, env=environment_of(lane), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(1 + deaths / 2 + chance.random()):
                    assert await process.wait() == 0
                break
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await producers.stop()
        assert await first_of_each(lane, queues_of(lane, 7)) == producers.published


# --- what is moved ---


async def test_messages_are_moved_as_they_are_also_those_that_no_worker_executes(
    settings: Settings, database: asyncpg.Connection, broker: TestBroker
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        (session,) = sessions_of(3, 5, number=1)
        await broker.publish(b"no JSON", routing_key="07", headers={"traceparent": "t"}, message_id="m1")
        await broker.publish(
            {"run_id": "r", "session_id": session},
            priority=3,
            expiration=3600,
            correlation_id="c",
            headers={"CC": ["x"]},
        )
        await _repartition(lane, 5, None, dry_run=False)
        (odd,) = [one for one in await taken(lane, queues_of(lane, 5)[0]) if one.body == b"no JSON"]
        assert (odd.message_id, dict(odd.headers)) == ("m1", {"traceparent": "t"})
        (forbidden,) = await taken(lane, queues_of(lane, 5)[3])
        assert (forbidden.priority, forbidden.expiration, forbidden.correlation_id) == (3, 3600, "c")
        assert dict(forbidden.headers) == {}


async def test_a_request_without_any_run_id_is_still_one_after_it_was_moved(
    settings: Settings, database: asyncpg.Connection, broker: TestBroker
) -> None:
    """The client gives the copy a message_id, and a message_id can be the run_id."""
    async with a_prefix_of(settings, database, 2) as lane:
        channel = await broker.channel.get_underlay_channel()
        # As other clients publish it; aiormq makes up an id.
        properties = spec.Basic.Properties(message_id=_Nothing(), content_type="application/json")
        body = b'{"session_id": "s-1", "team_id": "echo", "input": "hello"}'
        await channel.basic_publish(
            body, exchange=f"{lane.prefix}.requests", routing_key=slot("s-1"), properties=properties
        )
        await _repartition(lane, 3, None, dry_run=False)
        async with worker_of(lane.model_copy(update={"partitions": 3}), echo):
            letter = await broker.dead_letter()
        assert letter.headers["x-teamturn-code"] == "missing_run_id"


async def test_a_request_with_the_header_of_a_fence_is_moved_as_any_other(
    settings: Settings, database: asyncpg.Connection, broker: TestBroker
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        (session,) = sessions_of(3, 5, number=1)
        await broker.publish({"run_id": "r", "session_id": session}, headers={"x-teamturn-fence": "a producer's"})
        await _repartition(lane, 5, None, dry_run=False)
        assert len(await taken(lane, queues_of(lane, 5)[3])) == 1


class _Nothing(str):
    """An id that is sent as none, and that the client takes for one."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


# --- who may not run meanwhile ---


async def _interrupted(lane: Settings, partitions: int, steps: int = 6) -> None:
    with pytest.MonkeyPatch.context() as patched:
        die_after(steps, patched)
        with pytest.raises(_Killed):
            await _repartition(lane, partitions, None, dry_run=False)


async def test_it_refuses_while_a_worker_lives_and_names_it(settings: Settings, database: asyncpg.Connection) -> None:
    async with a_prefix_of(settings, database, 2) as lane, worker_of(lane, echo) as worker:
        await eventually(lambda: worker.consumers.consuming == worker.consumers.wanted != frozenset())
        with pytest.raises(StartupError, match=r"stop the workers of prefix .* first: .+:\d+"):
            await _repartition(lane, 3, None, dry_run=False)
        assert await agreement_of(database, lane.prefix) == Agreement(2, lane.prefetch)


async def test_a_worker_that_starts_meanwhile_is_refused_with_the_command_that_goes_on(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        await _interrupted(lane, 3)
        for partitions in (2, 3):
            with pytest.raises(StartupError, match="teamturn topology repartition --partitions 3"):
                async with worker_of(lane.model_copy(update={"partitions": partitions}), echo):
                    pass
        await _repartition(lane, 3, None, dry_run=False)
        with pytest.raises(StartupError, match=r"TEAMTURN_PARTITIONS is 2 here and 3"):
            async with worker_of(lane, echo):
                pass


async def test_a_worker_that_was_cut_off_from_postgres_meanwhile_consumes_nothing_and_ends(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with a_prefix_of(settings, database, 2) as lane, worker_of(lane, echo) as worker:
        await eventually(lambda: worker.consumers.consuming == worker.consumers.wanted != frozenset())
        # As if it were away: a change begins without it.
        await database.execute(
            "update fleet_settings set to_partitions = 3, to_prefetch = 32, phase = 'gathering' where prefix = $1",
            lane.prefix,
        )
        with pytest.raises(StartupError, match="are being changed from 2 to 3"):
            async with asyncio.timeout(10):
                await worker.failed()


async def test_bindings_that_a_starting_worker_made_meanwhile_are_taken_back(
    settings: Settings, database: asyncpg.Connection, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had read the old numbers before the change began; with its bindings each request would be in two queues."""

    async def and_a_worker_s(detour: Detour, channel: Any) -> None:
        await declare_new(detour, channel)
        async with connected(settings.amqp_url, name="test") as connection:
            await apply(connection.amqp, Topology(settings.prefix, 2))

    declare_new = Detour.declare_new
    monkeypatch.setattr(Detour, "declare_new", and_a_worker_s)
    async with a_prefix_of(settings, database, 2) as lane:
        await _repartition(lane, 3, None, dry_run=False)
        for session in SESSIONS:
            await broker.publish({"run_id": session, "session_id": session})
        assert sum([len(await taken(lane, queue)) for queue in queues_of(lane, 3)]) == len(SESSIONS)


async def test_nobody_records_an_assignment_while_it_is_under_way_or_of_the_old_number(
    settings: Settings, database: asyncpg.Connection
) -> None:
    """What a worker of a version does that knows nothing of changes."""
    recorded = partial(database.fetchval, "select record_assignment($1, null, $2)", settings.prefix)
    async with a_prefix_of(settings, database, 2) as lane:
        await _interrupted(lane, 3)
        assert not await recorded([1, 1])
        await _repartition(lane, 3, None, dry_run=False)
        assert not await recorded([1, 1])
        assert await recorded([1, 1, 1])


async def test_a_second_command_is_refused(settings: Settings, database: asyncpg.Connection) -> None:
    async with a_prefix_of(settings, database, 2) as lane, repartition.locked(database, lane.prefix):
        with pytest.raises(StartupError, match="by another command"):
            await _repartition(lane, 3, None, dry_run=False)


async def test_it_ends_when_its_connection_to_postgres_is_lost(
    settings: Settings, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_ever(*_: Any) -> None:
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'teamturn repartition%'"
        )
        await asyncio.Event().wait()

    monkeypatch.setattr(Detour, "declare_new", for_ever)
    async with a_prefix_of(settings, database, 2) as lane:
        with pytest.raises(StoreUnavailable, match="it goes on where it was"):
            async with asyncio.timeout(20):
                await _repartition(lane, 3, None, dry_run=False)


# --- what is said ---


@pytest.mark.parametrize(
    ("partitions", "prefetch", "says"),
    [(2, None, "has 2 partitions and a prefetch of 32 already"), (2, 32, "has 2 partitions")],
)
async def test_nothing_to_change_is_said(
    settings: Settings, database: asyncpg.Connection, partitions: int, prefetch: int | None, says: str
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        with pytest.raises(StartupError, match=says):
            await _repartition(lane, partitions, prefetch, dry_run=False)


async def test_a_prefix_that_no_worker_was_started_with_is_said(settings: Settings) -> None:
    with pytest.raises(StartupError, match="no worker of prefix"):
        await _repartition(settings, 3, None, dry_run=False)


async def test_another_number_than_that_of_the_change_under_way_is_refused(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        await _interrupted(lane, 3)
        with pytest.raises(StartupError, match=r"a change to 3 partitions .* is under way: finish it first"):
            await _repartition(lane, 4, None, dry_run=False)


async def test_apply_verify_and_doctor_say_that_a_change_is_under_way(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        await _interrupted(lane, 3)
        async with connected(lane.amqp_url, name="test") as broker:
            topology = Topology(lane.prefix, 2)
            assert "are being changed" in (await verify(broker.amqp, topology))[0]
            with pytest.raises(StartupError, match="are being changed"):  # what doctor says of the fleet
                await agrees(database, lane)
            with pytest.raises(StartupError, match="are being changed"):
                await check_partitions(broker.amqp, topology)
            await _repartition(lane, 3, None, dry_run=False)
            assert await verify(broker.amqp, Topology(lane.prefix, 3)) == []


async def test_who_looks_whether_a_change_is_under_way_makes_no_queue_that_says_so(
    settings: Settings, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change can end in the middle of the look."""

    async def looked_and_it_ended(queue: Queue, channel: Any) -> None:
        await _existing_queue(queue, channel)
        await channel.queue_delete(queue.name)

    async with a_prefix_of(settings, database, 2) as lane, connected(lane.amqp_url, name="test") as broker:
        await _interrupted(lane, 3)
        with monkeypatch.context() as patched, pytest.raises(StartupError, match="are being changed"):
            patched.setattr("worker.intake.topology._existing_queue", looked_and_it_ended)
            await check_partitions(broker.amqp, Topology(lane.prefix, 2))
        assert await queue_depth(broker.amqp, Detour(Topology(lane.prefix, 2)).held) == (None, None)


async def test_a_dry_run_says_what_would_be_moved_and_moves_nothing(
    settings: Settings, database: asyncpg.Connection, broker: TestBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_prefix_of(settings, database, 2) as lane:
        for number in range(3):
            await broker.ask(f"s-{number}")
        before = await there(lane)
        await _repartition(lane, 5, None, dry_run=True)
        assert "2 → 5 partitions, prefetch 32: 3 messages would be moved" in capsys.readouterr().out
        assert await there(lane) == before
        assert await agreement_of(database, lane.prefix) == Agreement(2, 32)
