"""What stands between the gateway and the web: headers, whose page may post, and how much is read and streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

MOST_BODY_BYTES: Final = 128 * 1024

HEADERS: Final = {
    # Scripts and styles of our own files only; and no script may turn text into HTML (trusted types).
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_Model = TypeVar("_Model", bound=BaseModel)


class Guard:
    """Adds the headers to every response, and refuses what another site's page posts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope)
        app = self._app
        # Browsers name the page's origin in every POST. The host is one of WEB_CHAT_NAMES.
        if request.method not in {"GET", "HEAD"} and (
            urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host", "")
        ):
            app = refused(403, "This was posted by another site's page.")
        await app(scope, receive, with_headers)


async def read_json(request: Request, model: type[_Model]) -> _Model:
    """Read a JSON body of a bounded size. Raises HTTPException for a wrong one."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Post application/json.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413, "This is too long.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        long = [one["ctx"]["max_length"] for one in error.errors() if one["type"] == "string_too_long"]
        message = f"This is too long: {long[0]:,} characters at most." if long else "This can't be read."
        raise HTTPException(422, message) from None


class EventStream(StreamingResponse):
    """Server-sent events; counts as one of the user's as long as it lasts."""

    def __init__(self, events: AsyncIterator[str], user_id: str, streams: Counter[str]) -> None:
        # The last header has nginx pass on what comes, as it comes.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._user_id, self._streams = user_id, streams

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams[self._user_id] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams[self._user_id] -= 1
            self._streams += Counter()  # forgets who has none


def refused(status: int, message: str) -> Response:
    """Return a refusal, with a sentence for people."""
    return JSONResponse({"message": message}, status)
