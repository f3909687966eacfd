"""A model server in this process that speaks OpenAI's two APIs over HTTP and answers, or fails, as it is told.

It answers `POST /v1/chat/completions`, streamed or not, and `POST /v1/responses`, not streamed:

    async with ModelServer.of(Fails(429, headers={"Retry-After": "1"}), Says("Paris")) as server:
        provider = OpenAIProvider(base_url=server.url, api_key="any")
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, assert_never

import h11

from tests.support.model_wire import Api, Asked, Calls, Json, Says, chunks, completion, response

__all__ = [
    "Answer",
    "Asked",
    "Calls",
    "Closes",
    "Fails",
    "HalfABody",
    "HalfAStream",
    "ModelServer",
    "Nonsense",
    "NotJson",
    "Says",
    "Waits",
]


@dataclass(frozen=True)
class Fails:
    """An error of the provider: a status that says so, with a body that is JSON or, given as text, is not."""

    status: int
    body: Json | str = field(default_factory=lambda: {"error": {"message": "told to fail", "type": "told"}})
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Closes:
    """No answer: the connection closes."""


@dataclass(frozen=True)
class HalfABody:
    """A text, in the middle of whose JSON the connection closes."""

    text: str = "never to be read"


@dataclass(frozen=True)
class HalfAStream:
    """A text, after whose first half's event the connection closes; as `HalfABody` where no stream was asked for."""

    text: str = "never to be read to its end"


@dataclass(frozen=True)
class Nonsense:
    """JSON that is no answer."""

    body: Json = field(default_factory=lambda: {"hello": "world"})


@dataclass(frozen=True)
class NotJson:
    """What a proxy in between might say, with status 200."""

    content: str = "<html><body>It works!</body></html>"
    content_type: str = "text/html"


@dataclass(frozen=True)
class Waits:
    """An answer that takes some seconds, or until an event is set."""

    until: float | asyncio.Event
    then: Answer


_AtOnce = Says | Calls | Fails | Closes | HalfABody | HalfAStream | Nonsense | NotJson
Answer = _AtOnce | Waits


class ModelServer:
    """Serves until the end of its block, which raises what `answer` raised: that only closes its connection."""

    def __init__(self, answer: Callable[[Asked], Answer] = lambda asked: Says(f"[{asked.prompt}]")) -> None:
        self.asked: list[Asked] = []
        """Every request, in order."""
        self.under_way = 0
        """How many requests wait for their answers."""
        self._answer = answer
        self._connections: list[asyncio.Task[None]] = []

    @classmethod
    def of(cls, *answers: Answer) -> Self:
        """A server that gives these answers, one a request, and the last one for ever."""
        left = list(answers)
        return cls(lambda _: left.pop(0) if len(left) > 1 else left[0])

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def connections(self) -> int:
        """How many connections clients have opened so far."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection and take no more of them; raise what `answer` raised."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        ends = await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        for end in ends:
            if end is not None and not isinstance(end, asyncio.CancelledError):
                raise end

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server.is_serving():
            task = asyncio.create_task(self._serve(_Connection(reader, writer)))
            task.add_done_callback(lambda _: writer.transport.abort())
            self._connections.append(task)
        else:
            writer.transport.abort()

    async def _serve(self, connection: _Connection) -> None:
        with suppress(ConnectionError):
            while True:
                head, body = await connection.receive()
                self.under_way += 1
                try:
                    await connection.send(await self._reply(connection, head, body))
                finally:
                    self.under_way -= 1

    async def _reply(self, connection: _Connection, head: h11.Request, body: bytes) -> _Reply:
        api = _APIS.get((head.method, head.target))
        if api is None:
            return _body({"error": {"message": "no such endpoint"}}, 404)
        asked = Asked(api, json.loads(body), asyncio.get_running_loop().time(), _api_key(head))
        self.asked.append(asked)
        answer = self._answer(asked)
        while isinstance(answer, Waits):
            until = answer.until
            await connection.outlast(until.wait() if isinstance(until, asyncio.Event) else asyncio.sleep(until))
            answer = answer.then
        return _reply(asked, answer)


_APIS: Final[Mapping[tuple[bytes, bytes], Api]] = {
    (b"POST", b"/v1/chat/completions"): "chat",
    (b"POST", b"/v1/responses"): "responses",
}


def _api_key(head: h11.Request) -> str | None:
    given = dict(head.headers).get(b"authorization")
    return None if given is None else given.decode().removeprefix("Bearer ")


@dataclass(frozen=True)
class _Reply:
    """An HTTP response, sent in pieces; without a status none is sent."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    is_cut: bool = False
    """Whether the connection closes after the last piece, instead of saying that it was the last."""


def _reply(asked: Asked, answer: _AtOnce) -> _Reply:
    match answer:
        case Says() | Calls():
            return _stream(asked, answer) if asked.stream else _whole(asked, answer)
        case Closes() | HalfABody() | HalfAStream():
            return _cut(asked, answer)
        case Nonsense(body):
            return _body(body)
        case NotJson(content, content_type):
            return _body(content, headers={"Content-Type": content_type})
        case Fails(status, body, headers):
            return _body(body, status, headers)
        case unexpected:
            assert_never(unexpected)


def _whole(asked: Asked, answer: Says | Calls) -> _Reply:
    return _body(completion(asked, answer) if asked.api == "chat" else response(asked, answer))


def _stream(asked: Asked, answer: Says | Calls) -> _Reply:
    if asked.api == "responses":
        return _body({"error": {"message": "this server does not stream responses"}}, 400)
    events = [*(json.dumps(chunk) for chunk in chunks(asked, answer)), "[DONE]"]
    return _Reply(200, {"Content-Type": "text/event-stream"}, tuple(f"data: {event}\n\n".encode() for event in events))


def _cut(asked: Asked, answer: Closes | HalfABody | HalfAStream) -> _Reply:
    if isinstance(answer, Closes):
        return _Reply(None, is_cut=True)
    if isinstance(answer, HalfAStream) and asked.stream:
        stream = _stream(asked, Says(answer.text))
        return replace(stream, pieces=stream.pieces[:2], is_cut=True)
    whole = _whole(asked, Says(answer.text))
    return replace(whole, pieces=tuple(piece[: len(piece) // 2] for piece in whole.pieces), is_cut=True)


def _body(content: Json | str, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> _Reply:
    """All at once: text as it is, JSON in ASCII, which escapes lone surrogates."""
    kind, text = ("text/plain", content) if isinstance(content, str) else ("application/json", json.dumps(content))
    body = text.encode()
    return _Reply(status, {"Content-Type": kind, "Content-Length": str(len(body)), **headers}, (body,))


class _Gone(ConnectionError):
    """The connection is closed, by the client or by us."""


class _Connection:
    """One client's requests and replies, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def receive(self) -> tuple[h11.Request, bytes]:
        """Wait for the next request and its body."""
        head = await self._next_event()
        assert isinstance(head, h11.Request)
        body = bytearray()
        while isinstance(data := await self._next_event(), h11.Data):
            body += data.data
        return head, bytes(body)

    async def send(self, reply: _Reply) -> None:
        if reply.status is not None:
            await self._send(h11.Response(status_code=reply.status, headers=list(reply.headers.items())))
        for piece in reply.pieces:
            await self._send(h11.Data(data=piece))
        if not reply.is_cut:
            await self._send(h11.EndOfMessage())
        if reply.is_cut or self._http.our_state is h11.MUST_CLOSE:
            self._writer.close()
            await self._writer.wait_closed()
            raise _Gone
        self._http.start_next_cycle()

    async def outlast(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait, but no longer than the client does."""
        tasks = [asyncio.create_task(waiting), asyncio.create_task(self._read_on())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            _, reading = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(reading, Exception):
            raise reading

    async def _next_event(self) -> h11.Event:
        while not isinstance(event := self._http.next_event(), h11.Event):
            await self._read()
        return event

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    async def _read_on(self) -> None:
        while True:
            await self._read()

    async def _read(self) -> None:
        data = await self._reader.read(65_536)
        if not data:
            raise _Gone
        self._http.receive_data(data)
