"""Connecting to RabbitMQ, and the translation of its errors into ours: once, here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ConnectionNotAllowed
from pydantic import SecretStr
from yarl import URL

from worker.cancellation import was_cancelled
from worker.certificates import OF_AMQP, require_files, tls_mistake
from worker.errors import BrokerUnavailable, StartupError
from worker.frames import tolerate_bad_properties

CONNECT_LIMIT_SECONDS: Final = 10.0
CLOSE_LIMIT_SECONDS: Final = 5.0
_HEARTBEAT_SECONDS: Final = "5"
"""A frozen consumer kept its queue for 180 s with the default heartbeat, for 14 s with this one (measured)."""

BROKER_ERRORS: Final = (*CONNECTION_EXCEPTIONS, ChannelInvalidStateError, asyncio.TimeoutError)
_LOSSES: Final = (AMQPError, ConnectionError, ChannelInvalidStateError)
"""Of those, what nothing but a connection to RabbitMQ raises."""


@dataclass(frozen=True, slots=True)
class BrokerConnection:
    """A connection to RabbitMQ, and whether it still is one.

    aio-pika calls a connection closed only after its own close(): one that the other side dropped passes for open.
    """

    amqp: AbstractConnection
    lost: asyncio.Event

    @property
    def blocked(self) -> bool:
        """Whether the broker takes nothing that is published over it, for an alarm: memory or disk is short."""
        transport = self.amqp.transport
        if transport is None or self.lost.is_set():
            return False
        # aiormq has only a coroutine that waits for the end of it: the first step of which shows whether it has to.
        waiting = transport.connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        finally:
            waiting.close()
        return True

    async def close(self) -> None:
        """Close it, within a limit."""
        self.lost.set()
        await close_quietly(self.amqp)


async def connect(url: SecretStr, *, name: str) -> BrokerConnection:
    """Open a connection that does not reconnect by itself: who uses it knows what must happen then.

    With amqps:// the server's certificate and its name are verified, by the authorities of the URL's `cafile` or else
    by the system's; `certfile` and `keyfile` are what it is shown of us. Raises StartupError for what an operator must
    mend, BrokerUnavailable where no server answers.
    """
    tolerate_bad_properties()
    require_files("TEAMTURN_AMQP_URL", url, OF_AMQP)
    address = URL(url.get_secret_value())
    if "heartbeat" not in address.query:
        address = address.update_query(heartbeat=_HEARTBEAT_SECONDS)
    where = host_and_port(url)
    try:
        with strays_told():
            connection = await aio_pika.connect(
                address, timeout=CONNECT_LIMIT_SECONDS, client_properties={"connection_name": name}
            )
    except (AuthenticationError, ProbableAuthenticationError):
        raise StartupError(f"RabbitMQ at {where} refuses the user or the password of TEAMTURN_AMQP_URL") from None
    except BROKER_ERRORS as error:
        if isinstance(error, ConnectionNotAllowed) or "Connection.OpenOk" in str(error):
            # Told by what came instead of the answer to Connection.Open: aiormq has no error of its own for it.
            vhost = address.path.removeprefix("/") or "/"
            raise StartupError(
                f"RabbitMQ at {where} has no virtual host {vhost!r} for the user of TEAMTURN_AMQP_URL"
            ) from None
        if mistake := tls_mistake(error):
            raise StartupError(
                f"RabbitMQ at {where}: {mistake} (TEAMTURN_AMQP_URL: cafile=, certfile= and keyfile= name files)"
            ) from None
        # By TLS 1.3 a server that wants to see a certificate says so by closing the connection.
        asked = ", and does it ask for a certificate (certfile=, keyfile=)" if address.scheme == "amqps" else ""
        raise BrokerUnavailable(
            f"RabbitMQ can't be reached at {where} ({_reason(error)}): is it running{asked}, and is TEAMTURN_AMQP_URL "
            "right?"
        ) from error
    lost = asyncio.Event()
    connection.close_callbacks.add(lambda *_: lost.set())
    return BrokerConnection(connection, lost)


def host_and_port(url: SecretStr) -> str:
    """Return where a URL leads, for people."""
    address = URL(url.get_secret_value())
    return f"{address.host}:{address.port or (5671 if address.scheme == 'amqps' else 5672)}"


@asynccontextmanager
async def connected(url: SecretStr, *, name: str) -> AsyncIterator[BrokerConnection]:
    """Open a connection for the block, and close it after it.

    Raises BrokerUnavailable also for one that is lost within the block.
    """
    connection = await connect(url, name=name)
    try:
        yield connection
    except _LOSSES as error:
        raise BrokerUnavailable(f"the connection to RabbitMQ was lost ({_reason(error)})") from error
    finally:
        await connection.close()


async def close_quietly(closable: AbstractConnection | AbstractChannel) -> None:
    """Close a connection or channel, within a limit: on one that is half dead, closing can hang or fail."""
    with suppress(BrokerUnavailable, *BROKER_ERRORS), strays_told():
        async with asyncio.timeout(CLOSE_LIMIT_SECONDS):
            await closable.close()


@contextmanager
def strays_told() -> Iterator[None]:
    """Raise BrokerUnavailable for a cancellation that nobody meant for this task.

    aiormq cancels what waits on a connection that it takes for stuck, and whoever awaits that is told the same.
    """
    try:
        yield
    except asyncio.CancelledError:
        if was_cancelled():
            raise
        raise BrokerUnavailable("the connection to RabbitMQ was lost") from None


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
