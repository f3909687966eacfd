"""Quorum queues over three RabbitMQ nodes: one of them dies under load."""

from __future__ import annotations

import time

import pytest

from tests.support.fleet import under_load
from tests.support.three_brokers import three_brokers
from worker.sandbox import Sandbox


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dead", [0, 2], ids=["the one that clients are connected to", "another one"])
async def test_a_node_that_dies_loses_nothing_and_reorders_nothing(sandbox: Sandbox, template: str, dead: int) -> None:
    async with (
        three_brokers() as brokers,
        under_load(sandbox, template, amqp_url=brokers.url) as scene,
    ):
        await scene.crew.hire()
        await scene.crew.hire()
        await scene.load.flows()
        since = time.monotonic()
        brokers.nodes[dead].kill()
        await scene.load.flows(seconds=60)
        story = await scene.story(since, range(scene.settings.partitions))
        print(f"longest pauses by partition: {story.pauses}; repeated turns: {len(story.repeated_turns)}")
        assert story.mistakes == []
