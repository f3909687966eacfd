"""Direct reply-to: addresses that RabbitMQ can have given away, and whose failure counts."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any, cast

import pytest
from aio_pika import Message

from tests.support.waiting import eventually
from tests.unit.examples import A_DIRECT_ADDRESS, everything_that_can_run
from worker.replies.direct import DirectReplies, is_direct_address
from worker.replies.publisher import Publisher, Unroutable

_KEY = "y8kxymQ7hBoW5MeNvVFUuw=="
_END = bytes(12)


def _address(process: bytes, key: str = _KEY) -> str:
    return f"amq.rabbitmq.reply-to.{b64encode(process).decode()}.{key}"


@pytest.mark.parametrize(
    "address",
    [
        A_DIRECT_ADDRESS,
        "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMjE4OTkyMDEAAAliAAAQxGUp3Wg=.V/BE0fSg1i3Cp0bpYeJqWw==",
        _address(b"\x83Xv\x00\x07reply@0" + _END),
        _address(b"\x83Xv\x00\x0freply@134217727" + b"\xff" * 12),
    ],
)
def test_what_rabbitmq_gives_to_a_requester_is_a_direct_address(address: str) -> None:
    assert is_direct_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.",
        "amq.rabbitmq.reply-to.x",
        "amq.rabbitmq.reply-to.x.y",
        "amq.rabbitmq.reply-to.x.y.z",
        f"x{A_DIRECT_ADDRESS}",
        f"{A_DIRECT_ADDRESS}\n",
        f"{A_DIRECT_ADDRESS}.",
        A_DIRECT_ADDRESS.replace(".g1h2", "..g1h2"),
        A_DIRECT_ADDRESS.replace(".g1h2", ". g1h2"),
        A_DIRECT_ADDRESS.replace("g1h2", "g1h"),
        A_DIRECT_ADDRESS.replace("==.", "=."),
        A_DIRECT_ADDRESS.replace(_KEY, ""),
        _address(b""),
        _address(b"\x83Xv\x00\x07reply@1"),
        _address(b"\x83Xv\x00\x07reply@1" + _END, key="é" * 22 + "=="),
        _address(b"\x83Xv\x00\x07reply@1" + _END, key="short"),
        _address(b"\x83Xv\x00\x08reply@1" + _END),
        _address(b"\x83Xv\x00\x06reply@" + _END),
        _address(b"\x83Xv\x00\x08reply@-1" + _END),
        _address(b"\x83Xv\x00\x10reply@1000000000" + _END),
        _address(b"\x83Xv\x00\x08rabbit@1" + _END),
        _address(b"\x83gv\x00\x07reply@1" + _END),
        _address(b"\x83Xv\x00\x07reply@1" + _END + b"\x00"),
    ],
)
def test_what_rabbitmq_never_gives_away_is_none(address: str) -> None:
    assert not is_direct_address(address)


class _Connection:
    """A publisher that fails at some bodies, and keeps count of how many it has under way."""

    def __init__(self, *fails_at: bytes) -> None:
        self.fails_at = fails_at
        self.tried: list[bytes] = []
        self.under_way = 0
        self.most_under_way = 0
        self.confirms = asyncio.Event()
        self.confirms.set()

    async def publish(self, message: Message, **_: Any) -> bool:
        self.tried.append(message.body)
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            await self.confirms.wait()
        finally:
            self.under_way -= 1
        if message.body in self.fails_at:
            raise Unroutable(message.body)
        return True


async def _publish(shared: _Connection, alone: _Connection, *bodies: bytes, to: str = A_DIRECT_ADDRESS) -> list[Any]:
    replies = DirectReplies(cast("Publisher", shared), cast("Publisher", alone))
    publishing = (replies.publish(Message(body), to, wanted=lambda: True) for body in bodies)
    return await asyncio.gather(*publishing, return_exceptions=True)


async def test_what_is_no_direct_address_is_never_published_to() -> None:
    connection = _Connection()
    (outcome,) = await _publish(connection, connection, b"1", to="amq.rabbitmq.reply-to.x.y")
    assert isinstance(outcome, Unroutable)
    assert connection.tried == []


async def test_what_fell_with_the_shared_connection_is_published_alone() -> None:
    shared, alone = _Connection(b"1", b"2"), _Connection()
    assert await _publish(shared, alone, b"0", b"1", b"2") == [True, True, True]
    assert alone.tried == [b"1", b"2"]


async def test_only_what_fails_alone_is_unroutable() -> None:
    outcomes = await _publish(_Connection(b"1", b"2", b"3"), _Connection(b"2"), b"1", b"2", b"3")
    assert [outcome is True for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], Unroutable)


async def test_of_what_fell_one_is_under_way_at_a_time() -> None:
    bodies = [str(number).encode() for number in range(10)]
    shared, alone = _Connection(*bodies), _Connection()
    alone.confirms.clear()
    publishing = asyncio.create_task(_publish(shared, alone, *bodies))
    await eventually(lambda: alone.under_way == 1)
    await everything_that_can_run()
    alone.confirms.set()
    assert await publishing == [True] * 10
    assert alone.most_under_way == 1
