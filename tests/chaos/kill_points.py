"""A worker killed between each two rows of the crash table, at the very point, from outside.

What it would do next is kept back on its lines, or waits for the model stub; what shows that it has come there is seen
on its lines, at the stub, by the consumer, or notified by Postgres with the commit. Each returns whether it has killed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

from tests.chaos.crew import Place
from tests.chaos.lines import Towards
from tests.chaos.load import Session
from tests.chaos.plan import Fault
from tests.chaos.scene import Scene
from tests.chaos.script import BEGUN, BETWEEN

_INTAKE: Final = b"teamturn intake "
_RESULTS: Final = b"teamturn results "
"""How a worker names the connections over which it acknowledges, and over which it replies."""
_RECORDING_SECONDS: Final = 1.0

KillPoint = Callable[[Scene, random.Random], Awaitable[bool]]


async def after_delivery(scene: Scene, rng: random.Random) -> bool:
    """The request has come to the worker; no word of it has come to Postgres."""
    async with _delivered(scene, rng, Fault.KILL_AFTER_DELIVERY) as (place, _):
        with place.postgres.holding() as hold:
            scene.crew.kill(place, Fault.KILL_AFTER_DELIVERY)
            hold.drop()
    return True


async def after_claim(scene: Scene, rng: random.Random) -> bool:
    """The executor has begun, and has taken no step."""
    team_id = rng.choice(("echo", "steps"))
    return await _in_held_call(scene, scene.new_session(Fault.KILL_AFTER_CLAIM, team_id), BEGUN, Fault.KILL_AFTER_CLAIM)


async def after_step(scene: Scene, _rng: random.Random) -> bool:
    """A step is recorded, and the next one has not begun."""
    session = scene.new_session(Fault.KILL_AFTER_STEP, "steps")
    return await _in_held_call(scene, session, BETWEEN, Fault.KILL_AFTER_STEP)


async def in_call(scene: Scene, rng: random.Random) -> bool:
    """A call is under way, and is not answered."""
    session, step = _any_step(scene, rng, Fault.KILL_IN_CALL)
    return await _in_held_call(scene, session, step, Fault.KILL_IN_CALL)


async def after_call(scene: Scene, rng: random.Random) -> bool:
    """A call was answered; that has come to the worker, and not to Postgres."""
    session, step = _any_step(scene, rng, Fault.KILL_AFTER_CALL)
    request = await scene.load.ask(session, hold=step)
    call = await scene.stub.held(request.run_id, step)
    place = scene.crew.place_of(call.worker)
    if place is None:
        return False
    with place.postgres.holding() as hold, place.postgres.watching(request.run_id, Towards.SERVER) as recording:
        scene.stub.let_go(call)
        try:
            # What it wants to record, if it records anything.
            async with asyncio.timeout(_RECORDING_SECONDS):
                await recording.wait()
        except TimeoutError:
            pass
        scene.crew.kill(place, Fault.KILL_AFTER_CALL)
        hold.drop()
    return True


async def after_commit(scene: Scene, rng: random.Random) -> bool:
    """The turn is committed, and no reply has come to RabbitMQ."""
    committed: asyncio.Queue[object] = asyncio.Queue()
    async with scene.database() as database:
        await database.add_listener("chaos_committed", lambda *told: committed.put_nowait(told[-1]))
        async with _delivered(scene, rng, Fault.KILL_AFTER_COMMIT) as (place, run_id):
            with place.amqp.holding(_RESULTS) as hold:
                while await committed.get() != run_id:
                    pass
                scene.crew.kill(place, Fault.KILL_AFTER_COMMIT)
                hold.drop()
    return True


async def after_reply(scene: Scene, rng: random.Random) -> bool:
    """The reply is with its consumer; the request is not acknowledged."""
    async with _delivered(scene, rng, Fault.KILL_AFTER_REPLY) as (place, run_id):
        with place.amqp.holding(_INTAKE) as hold:
            await scene.load.requests[run_id].answered.wait()
            scene.crew.kill(place, Fault.KILL_AFTER_REPLY)
            hold.drop()
    return True


KILL_POINTS: Final[Mapping[Fault, KillPoint]] = MappingProxyType(
    {
        Fault.KILL_AFTER_DELIVERY: after_delivery,
        Fault.KILL_AFTER_CLAIM: after_claim,
        Fault.KILL_AFTER_STEP: after_step,
        Fault.KILL_IN_CALL: in_call,
        Fault.KILL_AFTER_CALL: after_call,
        Fault.KILL_AFTER_COMMIT: after_commit,
        Fault.KILL_AFTER_REPLY: after_reply,
    }
)


@asynccontextmanager
async def _delivered(scene: Scene, rng: random.Random, name: str) -> AsyncIterator[tuple[Place, str]]:
    """Have a request come to a worker, and enter the block before that worker can do anything about it.

    All that it then says comes by this process, which has not been anywhere else since it passed the request on.
    """
    place, session = await _chosen(scene, rng, name)
    run_id = f"{session.session_id}/00000"
    with place.amqp.watching(run_id, Towards.WORKER) as delivered:
        asking = asyncio.create_task(scene.load.ask(session))
        try:
            await delivered.wait()
            yield place, run_id
        finally:
            await asking
    await scene.load.ask(session)


async def _chosen(scene: Scene, rng: random.Random, name: str) -> tuple[Place, Session]:
    """A worker, and a session whose requests it will be given."""
    while True:
        place = scene.any_place(rng)
        session = None if place is None else await scene.new_session_of(place, name, "echo")
        if place is not None and session is not None:
            return place, session
        await asyncio.sleep(0.2)


def _any_step(scene: Scene, rng: random.Random, name: str) -> tuple[Session, str]:
    team_id, step = rng.choice(
        [
            *(("steps", step) for step in ("first", "pay", "last")),
            *(("team", step) for step in ("leader/1", "reader/1", "buyer/1", "buyer/pay", "buyer/2", "leader/2")),
        ]
    )
    return scene.new_session(name, team_id), step


async def _in_held_call(scene: Scene, session: Session, step: str, name: Fault) -> bool:
    request = await scene.load.ask(session, hold=step)
    # Behind the one whose worker dies, to see the order.
    await scene.load.ask(session)
    call = await scene.stub.held(request.run_id, step)
    place = scene.crew.place_of(call.worker)
    if place is None:
        return False
    scene.crew.kill(place, name)
    return True
