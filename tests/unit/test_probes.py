"""The server that answers probes: few words of HTTP, for friends and for strangers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import pytest

from tests.support.probing import Probe
from worker.operations import probes
from worker.operations.probes import Answer, PortTaken, served

PAGES = {"/healthz": lambda: Answer(200, b"fine"), "/readyz": lambda: Answer(503, b'{"ready":false}')}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with served(PAGES, 0) as port:
        yield port


async def sent(port: int, words: bytes, *, hang_up: bool = False) -> bytes:
    """What comes back for some bytes, until the other side hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(words)
    if hang_up:
        writer.write_eof()
    answer = b""
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            answer = await reader.read()
    await closed(writer)
    return answer


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):  # reset by the other side
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "code", "body"), [("/healthz", 200, "fine"), ("/readyz?verbose=1", 503, '{"ready":false}')]
)
async def test_a_page_is_answered_with_its_status(port: int, path: str, code: int, body: str) -> None:
    answer = await Probe(port).get(path)
    assert (answer.status_code, answer.text) == (code, body)
    assert answer.headers["connection"] == "close"


async def test_head_is_answered_without_a_body(port: int) -> None:
    answer = await sent(port, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_an_old_probe_is_answered_too(port: int) -> None:
    assert (await sent(port, b"GET /healthz HTTP/1.0\r\n\r\n")).endswith(b"fine")


async def test_other_paths_are_not_found_and_the_answer_names_those_there_are(port: int) -> None:
    answer = await Probe(port).get("/")
    assert (answer.status_code, answer.text) == (404, "one of /healthz, /readyz\n")


async def test_other_methods_are_refused(port: int) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        assert (await client.post(f"http://127.0.0.1:{port}/healthz", content=b"x" * 100)).status_code == 405


@pytest.mark.parametrize("words", [b"\x16\x03\x01\x02\x00\x01", b"AMQP\x00\x00\x09\x01\r\n\r\n", b"x" * 100_000])
async def test_what_is_no_http_is_answered_once_and_hung_up_on(port: int, words: bytes) -> None:
    answer = await sent(port, words, hang_up=True)
    # Of the one who goes on talking, the connection is reset, and the answer with it.
    assert answer.startswith(b"HTTP/1.1 400 ") or (not answer and len(words) > 10_000)
    assert (await Probe(port).get("/healthz")).status_code == 200


async def test_who_hangs_up_without_a_word_is_told_nothing(port: int) -> None:
    assert await sent(port, b"", hang_up=True) == b""


async def test_who_says_nothing_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_REQUEST_SECONDS", 0.1)
    assert await sent(port, b"GET /healthz HTTP/1.1\r\n") == b""


async def test_more_who_say_nothing_than_there_is_room_for_are_hung_up_on_at_once(port: int) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(probes._MOST_CONNECTIONS)]
    assert await sent(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    for _, writer in silent:
        await closed(writer)


async def test_at_the_end_nobody_is_waited_for() -> None:
    async with asyncio.timeout(5):
        async with served(PAGES, 0) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            await Probe(port).get("/healthz")
        await closed(writer)
    with pytest.raises(httpx2.ConnectError):
        await Probe(port).get("/healthz")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_both_families_are_listened_on(port: int) -> None:
    assert (await Probe(port, host="[::1]").get("/healthz")).status_code == 200


async def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(PortTaken, match=f"port {port} can't be listened on .*in use"):
        async with served(PAGES, port):
            pass
