"""Direct reply-to: replies that RabbitMQ hands straight to the channel of the requester, through no queue.

An address is `amq.rabbitmq.reply-to.<process>.<key>` in base64: the Erlang process of the requester's channel, and a
random key. Every RabbitMQ since 3.10 writes it in the same way (rabbit_direct_reply_to.erl, pid_recomposition.erl;
from 4.2 rabbit_volatile_queue.erl, rabbit_pid_codec.erl). What is made up has one of three ends there:

- not of that form: dropped with a confirm, or (3.10) the connection is closed with INTERNAL_ERROR. Such an address is
  never published to;
- of that form, but of a node that does not run, or of a process that can't exist: 3.10 closes the connection, and with
  it falls everybody's reply that is under way on it. So what fell is published again alone, one after the other on a
  second connection: who fails there failed by itself, and everybody else arrives. It takes about 10 ms each;
- of that form, and its requester is gone (RabbitMQ 4: or of a node that does not run): dropped with a confirm. Nobody
  can tell.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Final

from aio_pika import Message

from worker.replies.publisher import Publisher, Unroutable

DIRECT: Final = "amq.rabbitmq.reply-to."

_ADDRESS: Final = re.compile(r"amq\.rabbitmq\.reply-to\.([A-Za-z0-9+/]+={0,2})\.[A-Za-z0-9+/]{22}==")
_PROCESS_START: Final = b"\x83Xv"
"""Of a process in Erlang's external term format: its version, NEW_PID_EXT, ATOM_UTF8_EXT."""
_PROCESS_END_BYTES: Final = 12
"""Its id, serial and creation."""
_NODE: Final = re.compile(rb"reply@[0-9]{1,9}")
"""The node stands there by the hash of its name, which is below 2**27 (erlang:phash2)."""

_MOST_TRIES_ALONE: Final = 3


def is_direct_address(reply_to: str) -> bool:
    """Whether RabbitMQ could have given this address to a requester."""
    found = _ADDRESS.fullmatch(reply_to)
    if found is None:
        return False
    try:
        process = b64decode(found[1], validate=True)
    except ValueError:
        return False
    start, node = process[:5], process[5:-_PROCESS_END_BYTES]
    return start == _PROCESS_START + len(node).to_bytes(2, "big") and _NODE.fullmatch(node) is not None


class DirectReplies:
    """Publishes direct replies; an address at which the broker fails costs no other address its reply."""

    def __init__(self, shared: Publisher, alone: Publisher) -> None:
        """`shared` has many replies under way at a time, `alone` one: each needs a connection that nobody else has."""
        self._shared = shared
        self._alone = alone
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._shared.close()
        await self._alone.close()

    async def publish(self, message: Message, reply_to: str, *, wanted: Callable[[], bool]) -> bool:
        """Publish until the broker confirms it (True), or until it is no longer wanted (False).

        Raises Unroutable if the address is made up, as far as that shows.
        """
        if not is_direct_address(reply_to):
            raise Unroutable(f"{reply_to!r} is no direct reply-to address")
        try:
            return await self._publish(self._shared, message, reply_to, wanted, most_tries=1)
        except Unroutable:
            # The connection fell: by this address, or by another one.
            async with self._turn:
                return await self._publish(self._alone, message, reply_to, wanted, most_tries=_MOST_TRIES_ALONE)

    async def _publish(
        self, publisher: Publisher, message: Message, reply_to: str, wanted: Callable[[], bool], *, most_tries: int
    ) -> bool:
        return await publisher.publish(
            message,
            exchange="",
            routing_key=reply_to,
            # RabbitMQ returns a mandatory direct reply as unroutable even when its requester is there.
            mandatory=False,
            wanted=wanted,
            most_tries=most_tries,
            alone=publisher is self._alone,
        )
