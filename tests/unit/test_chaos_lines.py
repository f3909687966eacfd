"""The lines of `deploy/chaos`: what they hold back, lose, see and cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.chaos.lines import Line, Towards
from tests.support.waiting import eventually


class Server:
    """Says again what it is told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.lost = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1_000):
                self.heard.append(data)
                writer.write(data)
        self.lost += 1
        writer.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def line(server: Server) -> AsyncIterator[Line]:
    serving = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = serving.sockets[0].getsockname()[1]
    async with Line(f"tcp://127.0.0.1:{port}/") as line:
        yield line
    serving.close()
    await eventually(lambda: not line.connections)


class Client:
    """A worker's connection, which says its name first."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def on(cls, line: Line, name: str) -> Client:
        host, port = line.url.removeprefix("tcp://").rstrip("/").split(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        await client.say(name)
        return client

    async def say(self, words: str) -> None:
        """Say it, and wait for the answer."""
        self.writer.write(words.encode())
        async with asyncio.timeout(5):
            assert await self.reader.readexactly(len(words)) == words.encode()

    async def gone(self) -> None:
        """Wait until the connection is gone."""
        async with asyncio.timeout(5):
            with suppress(ConnectionError):
                assert await self.reader.read() == b""
        self.writer.close()


async def test_what_is_held_back_comes_once_it_is_let_go_on(line: Line, server: Server) -> None:
    held, other = await Client.on(line, "intake 1"), await Client.on(line, "results 1")
    with line.holding(b"intake"), line.watching("ack", Towards.SERVER) as seen:
        held.writer.write(b"ack")
        await seen.wait()
        await other.say("reply")
        assert b"ack" not in server.heard
    await eventually(lambda: b"ack" in server.heard)
    held.writer.close()
    other.writer.close()


async def test_what_is_dropped_never_comes_and_the_server_sees_the_connection_go(line: Line, server: Server) -> None:
    held, other = await Client.on(line, "intake 1"), await Client.on(line, "results 1")
    with line.holding(b"intake") as hold, line.watching("ack", Towards.SERVER) as seen:
        held.writer.write(b"ack")
        await seen.wait()
        hold.drop()
        await eventually(lambda: server.lost == 1)
    await held.gone()
    await other.say("reply")
    assert b"ack" not in server.heard
    other.writer.close()


async def test_words_are_seen_also_in_two_pieces_and_in_their_direction_alone(line: Line) -> None:
    client = await Client.on(line, "intake 1")
    with line.watching("run-4711", Towards.WORKER) as seen, line.watching("run-4712", Towards.WORKER) as unsaid:
        await client.say("it is run-")
        assert not seen.is_set()
        await client.say("4711")
        assert seen.is_set()
        assert not unsaid.is_set()
    client.writer.close()


async def test_one_connection_is_cut_and_the_others_go_on(line: Line, server: Server) -> None:
    clients = [await Client.on(line, f"lane {number}") for number in range(3)]
    assert line.cut_one(random.Random(1))  # noqa: S311 - nothing secret
    await eventually(lambda: server.lost == 1)
    assert len(line.connections) == 2
    for client in clients:
        client.writer.close()


async def test_a_slow_line_passes_everything_on_later(line: Line) -> None:
    client = await Client.on(line, "lane 0")
    line.delay_seconds = 0.05
    began = asyncio.get_running_loop().time()
    await client.say("hello")
    assert asyncio.get_running_loop().time() - began >= 0.1
    client.writer.close()
