"""Requests that are unacknowledged for longer than RabbitMQ allows, because a turn takes so long.

RabbitMQ takes them back: 3.10 and 4.0 close the channel, 4.3 cancels the consumer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from typing_extensions import override

from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.intake.partitions import Consumers
from worker.sandbox import ways
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sandbox.site import Site
from worker.settings import Settings

TIMES = 3


class ImpatientNode(RabbitmqNode):
    """A node that allows a second, and looks every second; without this it is 30 minutes, and a minute."""

    @override
    def _prepare(self, distribution_port: int, epmd_port: int) -> dict[str, str]:
        env = super()._prepare(distribution_port, epmd_port)
        limits = "-rabbit consumer_timeout 1000 -rabbit channel_tick_interval 1000"
        return env | {"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{env['RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS']} {limits}"}


@pytest.fixture
async def impatient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """Settings with a RabbitMQ of the test's own, and one partition."""
    monkeypatch.setattr(ways, "RabbitmqNode", ImpatientNode)
    site = Site(report=print)
    try:
        rabbitmq = await asyncio.to_thread(ways.have_rabbitmq, site)
        if not isinstance(rabbitmq, ImpatientNode):
            pytest.skip(f"the time limits of this RabbitMQ ({rabbitmq.way}) are not ours to set")
        yield settings.model_copy(update={"amqp_url": SecretStr(rabbitmq.url), "partitions": 1})
    finally:
        await asyncio.to_thread(site.close)


async def test_a_turn_that_would_outlast_it_does_not_meet_it_nor_do_those_behind_it(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.wiring.Consumers", partial(Consumers, longest_held_seconds=0.5))
    gate = Gate()
    with capture_logs() as logged:

        def reopened() -> int:
            return sum(1 for event in logged if event["event"] == "channel_reopened")

        async with worker_of(settings, gate.executor, echo):
            asked = [await broker.ask("s1", str(number), team_id="gate") for number in range(6)]
            await eventually(lambda: reopened() >= TIMES)
            await broker.reply(await broker.ask("s2"))
            gate.open.set()
            await broker.replies_of(asked)
    answered = [reply.message_id for reply in broker.replies if reply.message_id in set(asked)]
    assert answered == asked, "each once, in order"
    assert Counter(gate.started) == Counter(asked)
    assert [event for event in logged if event["event"] == "channel_lost"] == []


async def test_a_turn_that_outlasts_it_is_taken_once_and_those_behind_it_keep_their_order(impatient: Settings) -> None:
    gate = Gate()
    with capture_logs() as logged:

        def times_taken_back() -> int:
            return sum(1 for event in logged if event["event"] == "channel_lost")

        async with (
            TestBroker(impatient.amqp_url.get_secret_value(), impatient.prefix) as broker,
            worker_of(impatient, gate.executor, echo),
        ):
            asked = [await broker.ask("s1", str(number), team_id="gate") for number in range(6)]
            await eventually(lambda: times_taken_back() >= TIMES)
            await broker.reply(await broker.ask("s2"))
            gate.open.set()
            await broker.replies_of(asked)
    answered = [reply.message_id for reply in broker.replies if reply.message_id in set(asked)]
    assert answered == asked, "each once, in order"
    assert Counter(gate.started) == Counter(asked)
