"""A web chat over teamturn's queue: Starlette, server-sent events, and a page without a build step. To copy.

    deploy/demo --keep && .venv/bin/python deploy/examples/web_chat/app.py

talks to what the demo has set up. Elsewhere it takes TEAMTURN_AMQP_URL, TEAMTURN_POSTGRES_URL, TEAMTURN_PREFIX and
TEAMTURN_DB_SCHEMA as the workers do, and

| variable | default | |
|---|---|---|
| WEB_CHAT_TEAMS | demo,panel | the ids of the teams that can be talked to; the first one is the default |
| WEB_CHAT_HOST, _PORT | 127.0.0.1, 8000 | where it listens |
| WEB_CHAT_NAMES | localhost,127.0.0.1 | the host names it is reached by; others are refused |
| WEB_CHAT_HEARTBEAT | 15 | seconds after which a silent stream says that it is there: proxies close it after 30 to 60 |
| WEB_CHAT_SECRET | made, and kept in a file | what cookies and ids are signed with; several gateways need the same |

Behind a proxy with TLS, have that pass on Host and X-Forwarded-Proto, and not collect what is streamed.

It imports no model libraries and keeps nothing: conversations are in Postgres, and a gateway that is restarted, or
another one, goes on with an answer where it is (see answers.py).

**Who is who.** A browser is a user, by a signed cookie; with a login of your own, change `Gateway._user` and nothing
else. All that is read or asked carries that user's id: the view is read by it, and workers refuse a request, or ignore
a cancel, for somebody else's session. Ids are made here, and signed: none can be made up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final, Self

import asyncpg
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from answers import Answer, Answers, TooBusy
from guard import EventStream, Guard, read_json, refused
from identity import Signer, core_of, new_core
from settings import Settings
from stored import Json, Stored
from teamturn import BrokerUnavailable, ClientError, RunClient, RunRequest, StartupError

STATIC: Final = Path(__file__).parent / "static"
MOST_CHARACTERS: Final = 16_000
"""Of one message."""
MOST_STREAMS: Final = 6
"""Of one user, at once: a browser keeps no more to one server by HTTP/1.1."""
COOKIE: Final = "web_chat_user"
_A_YEAR_SECONDS: Final = 365 * 24 * 3600
_TITLE_CHARACTERS: Final = 80


class Decision(BaseModel):
    """Whether a call of a tool that waits for a person may be made."""

    model_config = ConfigDict(extra="forbid")

    tool_call_id: Annotated[str, Field(min_length=1, max_length=255)]
    approved: bool
    message: Annotated[str, Field(max_length=1000)] | None = None
    """Why not."""


class Asked(BaseModel):
    """What the page posts: a message, or decisions on a paused run."""

    model_config = ConfigDict(extra="forbid")

    session_id: str | None = None
    """None begins a conversation, with `team`."""
    team: str | None = None
    run_id: str | None = None
    """Only to ask again for the answer to the same message: one that this gateway, or another, has made before."""
    text: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""
    continues: str | None = None
    """The paused run that the decisions are on."""
    decisions: Annotated[list[Decision], Field(max_length=100)] = Field(default_factory=list)


class Gateway:
    """The endpoints, while it is connected: an async context manager.

    Each answers to the user of the request alone; what is nobody's or somebody else's is not found.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signer = Signer(settings.secret)
        self._streams: Counter[str] = Counter()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect. Raises what the drivers do, StartupError and BrokerUnavailable."""
        async with AsyncExitStack() as opening:
            pool = asyncpg.create_pool(
                self._settings.postgres_url,
                min_size=1,
                max_size=4,
                command_timeout=10,
                server_settings={"search_path": f'"{self._settings.schema}"', "application_name": "teamturn web chat"},
            )
            self._stored = Stored(await opening.enter_async_context(pool))
            client = RunClient(self._settings.amqp_url, prefix=self._settings.prefix)
            self._client = await opening.enter_async_context(client)
            self._answers = await opening.enter_async_context(Answers(client))
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def names(self) -> list[str]:
        """The host names that it is reached by."""
        return self._settings.names

    async def page(self, request: Request) -> Response:
        """Return the page, and make who has no cookie a user."""
        response = FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})
        if self._user(request) is None:
            # Lax: a link to the page, from elsewhere, must not make a new user of the old one.
            response.set_cookie(
                COOKIE,
                self._signer.cookie(self._signer.new_user()),
                max_age=_A_YEAR_SECONDS,
                httponly=True,
                samesite="lax",
                secure=request.url.scheme == "https",
            )
        return response

    async def sessions(self, request: Request) -> Response:
        """Return the teams, and the user's conversations; those that are not stored yet are being answered."""
        user_id = self._user_of(request)
        running = self._answers.running(user_id)
        stored = await self._stored.sessions(user_id)
        known = {one["session_id"] for one in stored}
        new = {one.request.session_id: _overview(one) for one in running if one.request.session_id not in known}
        answering = {one.request.session_id for one in running}
        listed = [{**one, "answering": one["session_id"] in answering} for one in [*reversed(new.values()), *stored]]
        return _json({"teams": self._settings.teams, "sessions": listed})

    async def session(self, request: Request) -> Response:
        """Return a conversation: its turns as they are stored, and those that are being answered."""
        user_id, session_id = self._user_of(request), request.path_params["session_id"]
        # In this order: an answer that is stored between the two is in both, and not in none.
        running = [one for one in self._answers.running(user_id) if one.request.session_id == session_id]
        found = await self._stored.session(user_id, session_id)
        turns, earlier = await self._stored.turns(user_id, session_id)
        if found is None and not running:
            raise HTTPException(404, "There is no such conversation of yours.")
        stored = {one["run_id"] for one in turns}
        return _json(
            {
                **(found or _overview(running[0])),
                "session_id": session_id,
                "turns": turns,
                "earlier": earlier,
                "running": [_running(one) for one in running if one.request.run_id not in stored],
            }
        )

    async def ask(self, request: Request) -> Response:
        """Publish a message, or decisions; return where its events are."""
        user_id, asked = self._user_of(request), await read_json(request, Asked)
        if not asked.text.strip() and not asked.decisions:
            raise HTTPException(422, "Write something first.")
        first = core_of(asked.run_id or "") or new_core()
        session_id = asked.session_id or self._signer.session(user_id, first)
        team = await self._team_of(user_id, session_id, asked.team)
        run_id = asked.run_id or self._signer.run(user_id, session_id, new_core() if asked.session_id else first)
        if not self._signer.made_run(user_id, session_id, run_id):
            raise HTTPException(404, "There is no such run of yours.")
        answer = self._answers.ask(_request(asked, user_id, session_id, run_id, team))
        return _json({**_overview(answer), **_running(answer)})

    async def events(self, request: Request) -> Response:
        """Stream a run's events, behind the one that the browser has seen last."""
        user_id, run_id = self._user_of(request), request.path_params["run_id"]
        answer = self._answers.of(run_id)
        if answer is None or answer.request.user_id != user_id:
            raise HTTPException(404, "This run is not being watched.")
        seen = request.headers.get("last-event-id", "")
        after = int(seen) if seen.isascii() and seen.isdecimal() else 0
        if answer.is_over(after):
            return Response(status_code=204)  # by which a browser does not come again
        if self._streams[user_id] >= MOST_STREAMS:
            raise HTTPException(429, "This chat is open in too many windows. Close one of them.")
        return EventStream(answer.follow(after, self._settings.heartbeat_seconds), user_id, self._streams)

    async def cancel(self, request: Request) -> Response:
        """Say that an answer is not wanted any more. What becomes of it is told by its events."""
        user_id, session_id = self._user_of(request), request.path_params["session_id"]
        await self._client.cancel(request.path_params["run_id"], session_id=session_id, user_id=user_id)
        return _json({})

    async def _team_of(self, user_id: str, session_id: str, team: str | None) -> str:
        """Return the team that answers: a conversation keeps the one that it began with."""
        for answer in self._answers.running(user_id):
            if answer.request.session_id == session_id:
                return answer.request.team_id or ""
        if (found := await self._stored.session(user_id, session_id)) is not None:
            return str(found["team"])
        if not self._signer.made_session(user_id, session_id):
            raise HTTPException(404, "There is no such conversation of yours.")
        team = team or self._settings.teams[0]
        if team not in self._settings.teams:
            raise HTTPException(422, "There is no such team.")
        return team

    def _user_of(self, request: Request) -> str:
        user_id = self._user(request)
        if user_id is None:
            raise HTTPException(401, "This browser is not known here any more. Reload the page.")
        return user_id

    def _user(self, request: Request) -> str | None:
        return self._signer.user_of(request.cookies.get(COOKIE, ""))


def _request(asked: Asked, user_id: str, session_id: str, run_id: str, team: str) -> RunRequest:
    """Return the same request for the same message, however often it is asked: else it is a run_id_conflict."""
    fields: Json = {
        "run_id": run_id,
        "session_id": session_id,
        "team_id": team,
        "user_id": user_id,
        "on_busy": "reject",  # from a second window, say: who asks is told, and does not wait without knowing why
    }
    if asked.decisions:
        decisions = [one.model_dump(exclude_none=True) for one in asked.decisions]
        fields |= {"continues": asked.continues, "decisions": decisions}
    else:
        fields["input"] = asked.text
        if core_of(run_id) == core_of(session_id):  # the first one
            fields["metadata"] = {"title": _title(asked.text)}
    try:
        return RunRequest.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(422, "This can't be asked.") from error


def _title(text: str) -> str:
    whole_words = textwrap.shorten(text, _TITLE_CHARACTERS, placeholder=" …")
    return whole_words if len(whole_words) > 1 else text.strip()[:_TITLE_CHARACTERS]


def _overview(answer: Answer) -> Json:
    """Return what a conversation is listed by, before it is stored."""
    request = answer.request
    return {
        "session_id": request.session_id,
        "team": request.team_id,
        "title": request.metadata.get("title"),
        "active_at": None,
    }


def _running(answer: Answer) -> Json:
    return {"run_id": answer.request.run_id, "text": answer.request.text}


def _json(content: Json) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _answer_with(status: int, message: str) -> Callable[[Request, Exception], Response]:
    return lambda _request, _error: refused(status, message)


def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker: it is registered for these
    return refused(error.status_code, error.detail)


def _too_busy(_request: Request, error: Exception) -> Response:
    return refused(429, str(error))


_NO_QUEUE: Final = _answer_with(503, "The queue can't be reached at the moment. Try again in a minute.")
_NO_STORE: Final = _answer_with(503, "Stored conversations can't be read at the moment. Try again in a minute.")


def app_of(gateway: Gateway) -> Starlette:
    """Return the web application of a connected gateway."""
    run = "/api/sessions/{session_id}/runs/{run_id}"
    return Starlette(
        routes=[
            Route("/", gateway.page),
            Route("/c/{session_id}", gateway.page),
            Route("/api/sessions", gateway.sessions),
            Route("/api/sessions/{session_id}", gateway.session),
            Route("/api/messages", gateway.ask, methods=["POST"]),
            Route(f"{run}/events", gateway.events),
            Route(f"{run}/cancel", gateway.cancel, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard), Middleware(TrustedHostMiddleware, allowed_hosts=gateway.names)],
        exception_handlers={
            HTTPException: _http_error,
            TooBusy: _too_busy,
            ClientError: _NO_QUEUE,
            asyncpg.PostgresError: _NO_STORE,
            asyncpg.InterfaceError: _NO_STORE,
            OSError: _NO_STORE,
        },
    )


async def serve(settings: Settings) -> None:
    """Serve until a signal comes."""
    async with Gateway(settings) as gateway:
        # Whoever listens to events when it stops comes again by himself, and asks the next gateway.
        server = uvicorn.Config(
            app_of(gateway), host=settings.host, port=settings.port, timeout_graceful_shutdown=1, access_log=False
        )
        await uvicorn.Server(server).serve()


def main() -> None:
    """Run the gateway; a mistake in the set-up is one line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they tell of is RunClient's to mend
    try:
        asyncio.run(serve(Settings.read(os.environ)))
    except (BrokerUnavailable, ClientError, StartupError, asyncpg.PostgresError, OSError, ValueError) as error:
        sys.exit(f"web_chat: {error}")


if __name__ == "__main__":
    main()
