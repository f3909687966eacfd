"""Publishing with confirms over a line that breaks, and to a broker that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aio_pika import Message
from pydantic import SecretStr

from tests.support.broker import TestBroker
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from worker.intake.topology import Topology
from worker.replies.publisher import Publisher, Unroutable
from worker.settings import Settings

_BREAKS_RABBITMQ_3_10 = "amq.rabbitmq.reply-to.x.y"


@asynccontextmanager
async def _publisher(url: str, settings: Settings) -> AsyncIterator[Publisher]:
    publisher = Publisher(SecretStr(url), Topology(settings.prefix, settings.partitions), name="test")
    try:
        yield publisher
    finally:
        await publisher.close()


async def _publish(publisher: Publisher, routing_key: str, *, most_tries: int | None, alone: bool = False) -> bool:
    return await publisher.publish(
        Message(b"x"),
        exchange="",
        routing_key=routing_key,
        mandatory=False,
        wanted=lambda: True,
        most_tries=most_tries,
        alone=alone,
    )


async def test_tries_that_reach_no_broker_do_not_count(settings: Settings, broker: TestBroker) -> None:
    queue = await broker.channel.declare_queue(exclusive=True)
    async with Proxy(broker.url) as proxy, _publisher(proxy.url, settings) as publisher:
        proxy.is_down = True
        publishing = asyncio.create_task(_publish(publisher, queue.name, most_tries=1))
        await eventually(lambda: proxy.refused >= 3)
        proxy.is_down = False
        assert await publishing
    message = await queue.get()
    assert message.body == b"x"


async def test_what_the_broker_fails_by_alone_is_given_up_and_the_next_message_is_published(
    settings: Settings, broker: TestBroker
) -> None:
    async with _publisher(broker.url, settings) as publisher:
        for _ in range(20):
            # Other versions than 3.10 confirm it.
            with suppress(Unroutable):
                await _publish(publisher, _BREAKS_RABBITMQ_3_10, most_tries=None, alone=True)
            assert await _publish(publisher, "nowhere", most_tries=1, alone=True), "at its first try"
