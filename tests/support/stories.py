"""What happens to fleets under load, told by what came of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from tests.support.fleet import Scene, Story


async def joined(scene: Scene) -> Story:
    """Two workers more, one after the other."""
    await scene.crew.hire()
    await scene.load.flows()
    since = time.monotonic()
    await scene.crew.hire()
    await scene.load.flows()
    await scene.crew.hire()
    return await scene.story(since, range(scene.settings.partitions))


async def told_to_leave(scene: Scene) -> Story:
    """SIGTERM for one of two."""
    leaving, staying = await asyncio.gather(scene.crew.hire(), scene.crew.hire())
    await scene.crew.settled(leaving, staying)
    await scene.load.flows()
    partitions = await scene.crew.partitions_of(leaving)
    since = time.monotonic()
    leaving.terminate()
    code = await leaving.exited()
    return await scene.story(since, partitions, (code,))


async def killed(scene: Scene) -> Story:
    """SIGKILL for one of two."""
    dying, living = await asyncio.gather(scene.crew.hire(), scene.crew.hire())
    await scene.crew.settled(dying, living)
    await scene.load.flows()
    partitions = await scene.crew.partitions_of(dying)
    since = time.monotonic()
    dying.kill()
    await dying.exited()
    return await scene.story(since, partitions)


async def rolled(scene: Scene) -> Story:
    """Three workers, each told to leave once its successor is there."""
    workers = list(await asyncio.gather(*(scene.crew.hire() for _ in range(3))))
    await scene.crew.settled(*workers)
    await scene.load.flows()
    since = time.monotonic()
    codes = []
    for worker in list(workers):
        workers.append(await scene.crew.hire())
        worker.terminate()
        codes.append(await worker.exited())
        workers.remove(worker)
        await scene.crew.settled(*workers)
    return await scene.story(since, range(scene.settings.partitions), tuple(codes))


async def frozen(scene: Scene) -> Story:
    """SIGSTOP for one of two; it goes on when the other has what was its, and gets its share again."""
    freezing, other = await asyncio.gather(scene.crew.hire(), scene.crew.hire())
    await scene.crew.settled(freezing, other)
    await scene.load.flows()
    partitions = await scene.crew.partitions_of(freezing)
    since = time.monotonic()
    freezing.process.send_signal(signal.SIGSTOP)
    await scene.load.flows(seconds=60)
    freezing.process.send_signal(signal.SIGCONT)
    await scene.crew.settled(freezing, other)
    return await scene.story(since, partitions)


STORIES: dict[str, Callable[[Scene], Awaitable[Story]]] = {
    "joined": joined,
    "told to leave": told_to_leave,
    "killed": killed,
    "rolled": rolled,
    "frozen": frozen,
}
