"""What happens when a fault of the schedule is due."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import asyncpg

from tests.chaos.evidence import Upset
from tests.chaos.kill_points import KILL_POINTS, KillPoint
from tests.chaos.plan import Fault, Planned
from tests.chaos.scene import Scene
from worker.errors import StartupError, StoreUnavailable

_KILL_POINT_SECONDS: Final = 10.0
_KILL_POINT_TRIES: Final = 3
_AWAY: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, StoreUnavailable, StartupError, OSError)
"""What a look into Postgres meets with while it is away."""


async def run_schedule(scene: Scene, schedule: Sequence[Planned]) -> None:
    """Have each fault happen when it is due, and return when the last one is over."""
    began = time.monotonic()
    # They keep lines back; two at once would be in each other's way.
    killing = asyncio.Lock()
    async with asyncio.TaskGroup() as group:
        for planned in schedule:
            await asyncio.sleep(max(0.0, began + planned.at - time.monotonic()))
            rng = random.Random(planned.seed)  # noqa: S311 - to be repeated, not to be secret
            if planned.fault in KILL_POINTS:
                group.create_task(_kill_at(scene, rng, planned.fault, KILL_POINTS[planned.fault], killing))
            else:
                group.create_task(_FAULTS[planned.fault](scene, rng))


async def _kill_at(scene: Scene, rng: random.Random, fault: Fault, point: KillPoint, killing: asyncio.Lock) -> None:
    """Kill at a point of the crash table; where another fault comes first, once more."""
    async with killing:
        for _ in range(_KILL_POINT_TRIES):
            async with scene.servers:
                pass  # both are there
            try:
                async with asyncio.timeout(_KILL_POINT_SECONDS):
                    if await point(scene, rng):
                        return
                    scene.tally.note(f"{fault}: its worker has died before")
            except (TimeoutError, *_AWAY) as error:
                scene.tally.note(f"{fault}: {type(error).__name__} {error}")
            await asyncio.sleep(0.5)
    scene.tally.count(f"{fault}_missed")


async def _kill(scene: Scene, rng: random.Random) -> None:
    if (place := scene.any_place(rng)) is not None:
        scene.crew.kill(place, Fault.KILL)


async def _terminate(scene: Scene, rng: random.Random) -> None:
    if (place := scene.any_place(rng)) is not None:
        scene.crew.terminate(place)
        scene.tally.count(Fault.TERMINATE, place)


async def _freeze(scene: Scene, rng: random.Random) -> None:
    """Freeze a worker for a while; then it goes on, or dies."""
    if (place := scene.any_place(rng)) is None:
        return
    process = place.process
    scene.crew.freeze(place)
    seconds = rng.uniform(*scene.plan.freeze_seconds)
    scene.tally.count(Fault.FREEZE, f"{place} for {seconds:.1f} s")
    await asyncio.sleep(seconds)
    if place.process is not process:
        return
    if rng.random() < 1 / 3:
        scene.crew.kill(place, "kill_frozen")
    else:
        scene.crew.thaw(place)
        scene.tally.note(f"thawed {place}")


async def _restart_broker(scene: Scene, rng: random.Random) -> None:
    """Crash it, or stop it in good order; then start it again."""
    async with scene.servers:
        crashes = rng.random() < 1 / 2
        scene.tell("RabbitMQ is killed" if crashes else "RabbitMQ is stopped")
        with scene.upsets.during(Upset.BROKER):
            await asyncio.to_thread(scene.rabbitmq.kill if crashes else scene.rabbitmq.stop)
            await asyncio.sleep(rng.uniform(0, 2))
            await asyncio.to_thread(scene.rabbitmq.start)
        scene.tally.count(Fault.BROKER_RESTART)
        scene.tell("RabbitMQ is back")


async def _restart_postgres(scene: Scene, rng: random.Random) -> None:
    """Shut it down immediately, which is a crash; then start it again."""
    async with scene.servers:
        scene.tell("Postgres is shut down immediately")
        with scene.upsets.during(Upset.POSTGRES):
            await asyncio.to_thread(scene.postgres.shut_down_immediately)
            await asyncio.sleep(rng.uniform(0, 2))
            await asyncio.to_thread(scene.postgres.start)
        scene.tally.count(Fault.POSTGRES_RESTART)
        scene.tell("Postgres is back")


async def _cut(scene: Scene, rng: random.Random) -> None:
    """Cut one connection of a worker."""
    lines = {f"{place}: {name}": line for place in scene.crew.places for name, line in place.lines.items()}
    if connected := [name for name, line in lines.items() if line.connections]:
        name = rng.choice(connected)
        lines[name].cut_one(rng)
        scene.upsets.now(Upset.CUT)
        scene.tally.count(Fault.CUT, name)


async def _cut_producer(scene: Scene, rng: random.Random) -> None:
    if scene.producer_line.cut_one(rng):
        scene.tally.count(Fault.CUT_PRODUCER)


async def _end_lane(scene: Scene, rng: random.Random) -> None:
    """Have Postgres end one lane of a worker."""
    try:
        async with scene.database() as database:
            lanes = await database.fetch(
                "select pid from pg_stat_activity where application_name like 'teamturn lane %' order by pid"
            )
            if lanes:
                await database.execute("select pg_terminate_backend($1)", rng.choice(lanes)["pid"])
                scene.upsets.now(Upset.POSTGRES)
                scene.tally.count(Fault.END_LANE)
    except _AWAY:
        pass


async def _slow(scene: Scene, rng: random.Random) -> None:
    """Give a place a slow network for a while."""
    place = rng.choice(scene.crew.places)
    place.amqp.delay_seconds, place.postgres.delay_seconds = rng.uniform(0.01, 0.15), rng.uniform(0.01, 0.15)
    seconds = rng.uniform(0.2, 1) * min(15.0, scene.plan.seconds / 5)
    scene.tally.count(Fault.SLOW, f"{place} for {seconds:.1f} s")
    with scene.upsets.during(Upset.SLOW):
        await asyncio.sleep(seconds)
    place.amqp.delay_seconds = place.postgres.delay_seconds = 0.0


async def _poison(scene: Scene, _rng: random.Random) -> None:
    """Ask what kills its worker, and behind it what does not."""
    session = scene.new_session(Fault.POISON, "poison")
    await scene.load.ask(session, poison=True)
    await scene.load.ask(session)
    scene.tally.count(Fault.POISON, session.session_id)


_FAULTS: Final[Mapping[Fault, Callable[[Scene, random.Random], Coroutine[Any, Any, None]]]] = MappingProxyType(
    {
        Fault.KILL: _kill,
        Fault.FREEZE: _freeze,
        Fault.TERMINATE: _terminate,
        Fault.BROKER_RESTART: _restart_broker,
        Fault.POSTGRES_RESTART: _restart_postgres,
        Fault.CUT: _cut,
        Fault.CUT_PRODUCER: _cut_producer,
        Fault.END_LANE: _end_lane,
        Fault.SLOW: _slow,
        Fault.POISON: _poison,
    }
)
