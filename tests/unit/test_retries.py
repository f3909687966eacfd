"""Tries beyond the first are counted, each under what is tried: with nobody at the other end, or one who says no."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from aio_pika import Message
from pydantic import SecretStr
from typing_extensions import override

from tests.support.waiting import eventually
from worker.errors import LaneLost, StoreUnavailable
from worker.intake.partitions import Consumers
from worker.intake.topology import Topology
from worker.measures import Measures, Tried
from worker.replies.publisher import Publisher
from worker.sandbox.site import free_port
from worker.sessions import writes
from worker.sessions.lanes import Lane
from worker.sessions.writes import Writes

TOPOLOGY = Topology("teamturn", 1)


class Tries(Measures):
    def __init__(self) -> None:
        self.counted: Counter[Tried] = Counter()

    @override
    def retried(self, what: Tried) -> None:
        self.counted[what] += 1


async def seen(tries: Tries, what: Tried, trying: Coroutine[Any, Any, object]) -> None:
    """Wait until it is tried a third time, and find nothing else counted."""
    task = asyncio.create_task(trying)
    try:
        await eventually(lambda: tries.counted[what] >= 2)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert tries.counted.keys() == {what}


def nobody(scheme: str) -> SecretStr:
    return SecretStr(f"{scheme}://somebody:secret@127.0.0.1:{free_port()}/")


async def test_a_lane_that_finds_no_postgres() -> None:
    tries = Tries()
    await seen(tries, Tried.CONNECT_POSTGRES, Lane(nobody("postgresql"), "ai", 0, tries).run())


async def test_consumers_that_find_no_rabbitmq() -> None:
    tries = Tries()
    consumers = Consumers(
        nobody("amqp"),
        TOPOLOGY,
        prefetch=1,
        received=lambda _: None,
        lost=lambda: None,
        name="test",
        measures=tries,
    )
    await seen(tries, Tried.CONNECT_RABBITMQ, consumers.run())


async def test_a_message_that_can_not_be_published() -> None:
    tries = Tries()
    publisher = Publisher(nobody("amqp"), TOPOLOGY, name="test", measures=tries)
    publishing = publisher.publish(Message(b""), exchange="", routing_key="q", mandatory=True, wanted=lambda: True)
    await seen(tries, Tried.PUBLISH, publishing)


@pytest.mark.parametrize("what", [Tried.WRITE, Tried.COMMIT])
async def test_a_write_that_postgres_turns_down_for_the_moment(what: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "_RETRY_SECONDS", (0.0,))
    tries, answers = Tries(), [StoreUnavailable("full"), StoreUnavailable("locked"), None]

    async def write() -> str:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return "written"

    assert await Writes(tries).persistently(write, what=what) == "written"
    assert tries.counted == {what: 2}


async def test_a_write_whose_lane_is_lost_is_not_tried_again() -> None:
    tries = Tries()

    async def write() -> None:
        raise LaneLost("gone")

    with pytest.raises(LaneLost):
        await Writes(tries).persistently(write)
    assert not tries.counted
