"""A worker that is frozen or cut off: its partitions are consumed again in time, and no session notices but by waiting.

What takes time here is the time limits of RabbitMQ and Postgres, so that the stories are played side by side, once,
and each test looks at one side of each.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio
from pydantic import SecretStr

from tests.support.cable import Cable
from tests.support.fleet import Story, under_load
from tests.support.workers import WorkerProcess
from worker.sandbox import Sandbox
from worker.sandbox.errors import SandboxError
from worker.sandbox.site import Site
from worker.sandbox.ways import have_rabbitmq

STATED_SECONDS = 25
"""Within which what a worker consumed that is frozen or cut off is consumed again."""
SOON_SECONDS = 8
"""Within which a connection that is refused, or taken again, is done without or used again; tries are 5 s apart."""
OTHERS_SECONDS = 3


@dataclass(frozen=True)
class Loser:
    """The worker that loses its connections, or its time."""

    process: WorkerProcess
    to_rabbitmq: Cable
    to_postgres: Cable

    def freeze(self) -> None:
        self.process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.process.send_signal(signal.SIGCONT)


async def lost_and_found(
    sandbox: Sandbox, template: str, lose: Callable[[Loser], None], find: Callable[[Loser], None]
) -> Story:
    """One of two workers is lost, is found again when the other has what was its, and gets its share again."""
    async with (
        under_load(sandbox, template) as scene,
        Cable(scene.settings.amqp_url.get_secret_value()) as to_rabbitmq,
        Cable(scene.settings.postgres_url.get_secret_value()) as to_postgres,
    ):
        by_cable = {"amqp_url": SecretStr(to_rabbitmq.url), "postgres_url": SecretStr(to_postgres.url)}
        loser, other = await asyncio.gather(
            scene.crew.hire(scene.settings.model_copy(update=by_cable)), scene.crew.hire()
        )
        await scene.crew.settled(loser, other)
        await scene.load.flows()
        partitions = await scene.crew.partitions_of(loser)
        lost = time.monotonic()
        lose(Loser(loser, to_rabbitmq, to_postgres))
        await scene.load.flows(seconds=60)
        find(Loser(loser, to_rabbitmq, to_postgres))
        await scene.crew.settled(loser, other)
        return await scene.story(lost, partitions)


async def broker_restarted(sandbox: Sandbox, template: str) -> Story:
    """Two workers lose their broker, which is another one than the other tests'."""
    site = Site(report=print)
    try:
        rabbitmq = await asyncio.to_thread(have_rabbitmq, site)
        async with under_load(sandbox, template, amqp_url=rabbitmq.url) as scene:
            workers = await asyncio.gather(scene.crew.hire(), scene.crew.hire())
            await scene.crew.settled(*workers)
            await scene.load.flows()
            await asyncio.to_thread(rabbitmq.restart)
            answers_again = time.monotonic()
            await scene.load.flows(seconds=60)
            await scene.crew.settled(*workers)
            return await scene.story(answers_again, range(scene.settings.partitions))
    finally:
        await asyncio.to_thread(site.close)


STORIES: dict[str, Callable[[Sandbox, str], Awaitable[Story]]] = {
    "frozen": partial(lost_and_found, lose=Loser.freeze, find=Loser.thaw),
    "RabbitMQ unplugged": partial(
        lost_and_found, lose=lambda loser: loser.to_rabbitmq.unplug(), find=lambda loser: loser.to_rabbitmq.plug_in()
    ),
    "Postgres unplugged": partial(
        lost_and_found, lose=lambda loser: loser.to_postgres.unplug(), find=lambda loser: loser.to_postgres.plug_in()
    ),
    "RabbitMQ cut": partial(
        lost_and_found, lose=lambda loser: loser.to_rabbitmq.cut(), find=lambda loser: loser.to_rabbitmq.plug_in()
    ),
    "Postgres cut": partial(
        lost_and_found, lose=lambda loser: loser.to_postgres.cut(), find=lambda loser: loser.to_postgres.plug_in()
    ),
    "broker restarted": broker_restarted,
}
OF_ONE_WORKER = [name for name in STORIES if name != "broker restarted"]
NOTICED_AT_ONCE = ["RabbitMQ cut", "Postgres cut", "broker restarted"]
NOTICED_IN_TIME = [name for name in STORIES if name not in NOTICED_AT_ONCE]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(sandbox: Sandbox, template: str) -> dict[str, Story | BaseException]:
    """How each of them ended."""
    ends = await asyncio.gather(*(play(sandbox, template) for play in STORIES.values()), return_exceptions=True)
    return dict(zip(STORIES, ends, strict=True))


@pytest.fixture
def story(stories: dict[str, Story | BaseException], request: pytest.FixtureRequest) -> Story:
    end = stories[request.param]
    if isinstance(end, SandboxError):
        pytest.skip(str(end))
    if isinstance(end, BaseException):
        raise end
    return end


@pytest.mark.parametrize("story", STORIES, indirect=True)
def test_every_session_keeps_its_order_and_each_request_its_one_run_and_answer(story: Story) -> None:
    assert story.mistakes == []


@pytest.mark.parametrize("story", NOTICED_IN_TIME, indirect=True)
def test_what_is_lost_without_a_word_is_consumed_again_in_the_stated_time(story: Story) -> None:
    print(f"longest pauses by partition: {story.pauses}")
    assert max(story.pauses.values()) < STATED_SECONDS


@pytest.mark.parametrize("story", NOTICED_AT_ONCE, indirect=True)
def test_what_is_noticed_at_once_is_consumed_again_soon(story: Story) -> None:
    print(f"longest pauses by partition: {story.pauses}")
    assert max(story.pauses.values()) < SOON_SECONDS


@pytest.mark.parametrize("story", OF_ONE_WORKER, indirect=True)
def test_the_other_worker_s_partitions_go_on(story: Story) -> None:
    print(f"longest pauses by partition: {story.others}")
    assert max(story.others.values()) < OTHERS_SECONDS
