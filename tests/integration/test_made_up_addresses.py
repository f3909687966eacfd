"""Direct reply-to addresses that a producer made up: each costs its own reply its place, and nobody else anything.

RabbitMQ 3.10 closes the connection that publishes to most of these. RabbitMQ 4 confirms what is published to one of its
own form, and drops it, as it does where the requester has gone: nobody can tell.
"""

from __future__ import annotations

import asyncio
import itertools
from base64 import b64encode
from collections.abc import Iterator
from functools import partial

from aio_pika.abc import AbstractIncomingMessage
from pydantic import JsonValue

from tests.support.broker import TestBroker, slot
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.executors.function import FunctionExecutor, executor
from worker.executors.turn import Turn
from worker.settings import Settings

_DIRECT = "amq.rabbitmq.reply-to"
"""As `reply_to` of a request, RabbitMQ puts the requester's address in its place."""


def _has_no_form(number: int) -> bool:
    return number % 5 == 4


def _made_up(number: int) -> str:
    """An address of RabbitMQ's own form, of a node that does not run; every fifth one not even that."""
    if _has_no_form(number):
        return f"{_DIRECT}.x.{number}"
    process = b"\x83Xv\x00\x07reply@1" + number.to_bytes(4, "big") + bytes(8)
    return f"{_DIRECT}.{b64encode(process).decode()}.AAAAAAAAAAAAAAAAAAAAAA=="


async def _direct_replies(broker: TestBroker) -> list[AbstractIncomingMessage]:
    """Collect what comes back to requests that are published with `reply_to=_DIRECT` from now on."""
    came: list[AbstractIncomingMessage] = []

    async def received(message: AbstractIncomingMessage) -> None:
        came.append(message)

    queue = await broker.channel.get_queue(_DIRECT, ensure=False)
    await queue.consume(received, no_ack=True)
    return came


def _together(count: int) -> FunctionExecutor:
    """A team that answers when so many of its turns are under way."""
    started = 0
    all_started = asyncio.Event()

    @executor("together")
    async def together(turn: Turn) -> JsonValue:
        nonlocal started
        started += 1
        if started == count:
            all_started.set()
        await all_started.wait()
        return turn.run_id

    return together


def _sessions_of(partition: int, settings: Settings) -> Iterator[str]:
    names = (f"s{number}" for number in itertools.count())
    return (name for name in names if int(slot(name), 16) % settings.partitions == partition)


async def _is_depth(broker: TestBroker, queue: str, messages: int) -> bool:
    return await broker.depth(queue) == messages


async def test_malformed_messages_with_made_up_addresses_do_not_hold_up_the_answer_to_another(
    settings: Settings, broker: TestBroker
) -> None:
    async with worker_of(settings, _together(settings.prefetch)):
        answers = await _direct_replies(broker)
        for number in range(30):
            await broker.publish(b"no JSON", routing_key="00", reply_to=_made_up(number))
        await broker.publish(b"no JSON", routing_key="00", reply_to=_DIRECT, correlation_id="c1")
        # Each used to take 0.4 s, one after the other.
        await eventually(lambda: [answer.correlation_id for answer in answers] == ["c1"], seconds=5)
        await eventually(partial(_is_depth, broker, "dead", 31))
        # As many as a partition has unacknowledged at most: these are all under way when nothing else is.
        sessions = itertools.islice(_sessions_of(0, settings), settings.prefetch)
        await broker.replies_of([await broker.ask(session, team_id="together") for session in sessions])


async def test_direct_replies_arrive_at_their_requester_whatever_others_are_under_way(
    settings: Settings, broker: TestBroker
) -> None:
    good, made_up, dropped = set[str](), set[str](), set[str]()
    drops_without_a_word = broker.version >= (4,)
    async with worker_of(settings.model_copy(update={"prefetch": 64}), _together(60)):
        came = await _direct_replies(broker)
        for number in range(60):
            of, reply_to = (made_up, _made_up(number)) if number % 3 == 0 else (good, _DIRECT)
            if of is made_up and drops_without_a_word and not _has_no_form(number):
                of = dropped
            of.add(f"run-{number}")
            await broker.publish({"run_id": f"run-{number}", "team_id": "together", "input": "hi"}, reply_to=reply_to)
        await broker.replies_of(list(made_up))
        await eventually(lambda: {one.message_id for one in came} == good)
    assert {one.message_id for one in broker.replies} == made_up
