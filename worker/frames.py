"""Decoding AMQP frames so that no message, and no channel that closes, can cost a connection.

pamqp raises for a property that it can't decode (a timestamp in the year 292278994, text that is not UTF-8, a
table within a table 20,000 deep), and aiormq then closes the connection. The broker delivers the message again, to
the next connection: one hostile message would stop every worker for good. Here such a property is decoded as far as
it can be, and the message is judged like any other.

aiormq reads all channels of a connection in one task, which waits for room in the buffer of each, ten frames. A
channel that is being closed may have nobody who reads them; and then nothing of the connection is read any more. What
is sent waits for room, too: an acknowledgement that waits while its channel is closed comes after that, and RabbitMQ
then closes the connection.
"""

from __future__ import annotations

from typing import Any, Final

import aiormq
from aiormq.abc import AbstractChannel
from pamqp import decode
from pamqp.common import FieldValue

_LONGEST_SHORT_STRING_BYTES: Final = 255
_TIMESTAMP_BYTES: Final = 8
_TABLE_LENGTH_BYTES: Final = 4


def tolerate_bad_properties() -> None:
    """Replace pamqp's decoders of texts, timestamps and tables in message properties. Safe to repeat."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["table"] = _table


def unlimited(channel: AbstractChannel) -> aiormq.Channel:
    """Give the buffers of a channel no limit, and return it.

    What they hold is bounded by who uses it: by a consumer's prefetch, by the replies that wait for their confirms.
    """
    assert isinstance(channel, aiormq.Channel)  # noqa: S101 - for the type checker
    buffers: Any = (channel.frames, channel.write_queue)
    for buffer in buffers:
        buffer._maxsize = 0  # noqa: SLF001 - neither aio-pika nor aiormq lets it be chosen
    return channel


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    raw = value[1 : length + 1]
    text = raw.decode("utf-8", errors="replace")
    if "\ufffd" in text:
        # Each replacement has three bytes, and what is too long could not be sent again.
        text = text.encode()[:_LONGEST_SHORT_STRING_BYTES].decode(errors="ignore")
    return length + 1, text


def _timestamp(value: bytes) -> tuple[int, FieldValue]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return _TIMESTAMP_BYTES, None


def _table(value: bytes) -> tuple[int, FieldValue]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, OSError, LookupError, RecursionError):
        length = int.from_bytes(value[:_TABLE_LENGTH_BYTES], "big")
        return _TABLE_LENGTH_BYTES + length, {}
