"""The gateway of deploy/examples/web_chat, spoken to without its page: what it refuses, and how events are resumed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.acceptance.stage import Stage, staged
from tests.support.waiting import eventually
from tests.support.web_chat import APP, WebChat
from tests.support.workers import ROOT
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Visitor:
    """Somebody with a cookie of the gateway's."""

    stage: Stage
    http: httpx.AsyncClient

    async def ask(self, text: str, **fields: Any) -> httpx.Response:
        """Post a message as the page does."""
        return await self.http.post("/api/messages", json={"text": text, "team": "plain", **fields})

    async def begun(self, text: str) -> str:
        """Post a message that begins a conversation; return where its events are."""
        asked = (await self.ask(text)).raise_for_status().json()
        return f"/api/sessions/{asked['session_id']}/runs/{asked['run_id']}/events"

    async def events(self, path: str, *, seen: int | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Read a run's events to their end: number, event."""
        headers = {} if seen is None else {"last-event-id": str(seen)}
        body = (await self.http.get(path, headers=headers)).raise_for_status().text
        return [
            (int(number), json.loads(data))
            for number, data in re.findall(r"^id: (\d+)\ndata: (.+)$", body, re.MULTILINE)
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stage, WebChat]]:
    folder = tmp_path_factory.mktemp("gates")
    async with (
        staged(sandbox, template, folder, teams="web_chat_teams:teams") as stage,
        WebChat(stage.settings, "plain", WEB_CHAT_HEARTBEAT="0.3") as chat,
    ):
        yield stage, chat


@pytest_asyncio.fixture(loop_scope="module")
async def visitor(running: tuple[Stage, WebChat]) -> AsyncIterator[Visitor]:
    stage, chat = running
    async with httpx.AsyncClient(base_url=chat.url, headers={"origin": chat.url}, timeout=20) as http:
        (await http.get("/")).raise_for_status()
        yield Visitor(stage, http)


async def test_events_are_numbered_and_go_on_behind_the_one_that_was_seen(visitor: Visitor) -> None:
    path = await visitor.begun("Hello")
    events = await visitor.events(path)
    assert [number for number, _ in events] == list(range(1, len(events) + 1))
    assert [event["type"] for _, event in events] == [
        "run_started",
        *["content_delta"] * (len(events) - 2),
        "run_finished",
    ]
    assert await visitor.events(path, seen=2) == events[2:]
    # By 204 a browser knows that there will be no more.
    assert (await visitor.http.get(path, headers={"last-event-id": str(len(events))})).status_code == 204


async def test_the_same_message_sent_again_is_one_run(visitor: Visitor) -> None:
    first = (await visitor.ask("Once")).json()
    again = (await visitor.ask("Once", session_id=first["session_id"], run_id=first["run_id"])).json()
    assert (again["session_id"], again["run_id"]) == (first["session_id"], first["run_id"])
    await visitor.events(f"/api/sessions/{first['session_id']}/runs/{first['run_id']}/events")
    assert len(await visitor.stage.runs(first["session_id"])) == 1


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": ""}], ids=["another", "null", "none"]
)
async def test_what_another_site_s_page_posts_is_refused(visitor: Visitor, headers: dict[str, str]) -> None:
    refused = await visitor.http.post("/api/messages", json={"text": "Hello"}, headers=headers)
    assert refused.status_code == 403
    assert (await visitor.http.get("/api/sessions")).json()["sessions"] == []


async def test_a_form_can_t_post(visitor: Visitor) -> None:
    body = json.dumps({"text": "Hello"})
    assert (
        await visitor.http.post("/api/messages", content=body, headers={"content-type": "text/plain"})
    ).status_code == 415


async def test_a_host_name_that_is_not_its_own_is_refused(visitor: Visitor) -> None:
    assert (await visitor.http.get("/", headers={"host": "evil.example"})).status_code == 400


@pytest.mark.parametrize("path", ["/", "/static/chat.js", "/api/sessions", "/api/sessions/none", "/none"])
async def test_every_answer_has_the_security_headers(visitor: Visitor, path: str) -> None:
    headers = (await visitor.http.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


async def test_a_visitor_s_cookie_is_out_of_reach_of_scripts_and_other_sites(running: tuple[Stage, WebChat]) -> None:
    async with httpx.AsyncClient(base_url=running[1].url) as http:
        cookie = (await http.get("/")).headers["set-cookie"]
        assert "set-cookie" not in (await http.get("/")).headers  # who has one keeps it
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


async def test_a_cookie_that_was_made_up_is_nobody_s(visitor: Visitor) -> None:
    (name, value), *_ = visitor.http.cookies.items()
    user_id, _, signature = value.rpartition(".")
    visitor.http.cookies.clear()
    for made_up in [f"{user_id}.", f"{user_id}.{signature[:-1]}", f"web-{'0' * 32}.{signature}", "é"]:
        answer = await visitor.http.get("/api/sessions", headers={b"cookie": f"{name}={made_up}".encode()})
        assert answer.status_code == 401, made_up


async def test_ids_that_were_made_up_are_refused(visitor: Visitor) -> None:
    path = await visitor.begun("Hello")
    await visitor.events(path)
    session_id = path.split("/")[3]
    assert (await visitor.ask("Hello", session_id="mine")).status_code == 404
    assert (await visitor.ask("Hello", session_id=session_id, run_id="mine")).status_code == 404
    assert (await visitor.ask("Hello", run_id=f"run-{'0' * 32}-{'A' * 22}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": "x" * 16_001}, 422),
        ({"text": "  "}, 422),
        ({"text": "Hello", "team": "another"}, 422),
        ({"text": "Hello", "user_id": "somebody"}, 422),
        ({"text": "x" * 200_000}, 413),
    ],
    ids=["too long", "empty", "unknown team", "unknown field", "too large"],
)
async def test_a_wrong_message_is_refused_in_a_sentence(visitor: Visitor, body: dict[str, str], status: int) -> None:
    refused = await visitor.http.post("/api/messages", json=body)
    assert refused.status_code == status
    assert refused.json()["message"].endswith(".")


async def test_a_visitor_has_three_answers_written_at_a_time(visitor: Visitor) -> None:
    paths = [await visitor.begun(f"Number {number} [three]") for number in range(3)]
    refused = await visitor.ask("One more")
    assert (refused.status_code, "Your other conversations" in refused.json()["message"]) == (429, True)
    visitor.stage.gates.open("three")
    for path in paths:
        await visitor.events(path)
    await visitor.events(await visitor.begun("One more"))


async def test_a_visitor_has_six_streams_at_a_time(visitor: Visitor) -> None:
    path = await visitor.begun("Watched by many [six]")
    async with AsyncExitStack() as open_streams:
        for _ in range(6):
            stream = await open_streams.enter_async_context(visitor.http.stream("GET", path))
            assert stream.status_code == 200
        assert (await visitor.http.get(path)).status_code == 429
    visitor.stage.gates.open("six")

    async def has_room() -> bool:
        return (await visitor.http.get(path)).status_code == 200

    await eventually(has_room)


async def test_a_visitor_does_not_see_what_another_one_is_asking(
    running: tuple[Stage, WebChat], visitor: Visitor
) -> None:
    path = await visitor.begun("Not for others [others]")
    session_id = path.split("/")[3]
    url = running[1].url
    async with httpx.AsyncClient(base_url=url, headers={"origin": url}) as other:
        await other.get("/")
        assert (await other.get("/api/sessions")).json()["sessions"] == []
        assert (await other.get(path)).status_code == 404
        assert (await other.get(f"/api/sessions/{session_id}")).status_code == 404
        await other.post(path.replace("/events", "/cancel"), json={})
    visitor.stage.gates.open("others")
    (*_, (_, last)) = await visitor.events(path)
    assert last["reply"]["status"] == "COMPLETED"


async def test_a_stream_that_is_silent_says_that_it_is_there(visitor: Visitor) -> None:
    path = await visitor.begun("Silent [silent]")
    async with visitor.http.stream("GET", path) as stream:
        lines = stream.aiter_lines()
        async with asyncio.timeout(30):
            while await anext(lines) != ": still here":
                pass
    visitor.stage.gates.open("silent")
    await visitor.events(path)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WEB_CHAT_PORT": "http"}, "invalid literal for int() with base 10: 'http'"),
        ({"WEB_CHAT_SECRET": "secret"}, "WEB_CHAT_SECRET is too short to be one: it has 16 bytes at least"),
        ({"TEAMTURN_AMQP_URL": "amqp://127.0.0.1:1/"}, "RabbitMQ can't be reached at 127.0.0.1:1"),
        ({"TEAMTURN_POSTGRES_URL": "postgresql+psycopg://127.0.0.1:1/none"}, "Connect call failed"),
    ],
    ids=["port", "secret", "RabbitMQ", "Postgres"],
)
async def test_a_mistake_in_the_set_up_is_one_line(
    running: tuple[Stage, WebChat], environment: dict[str, str], said: str
) -> None:
    chat = WebChat(running[0].settings, "plain", **environment)
    code, error = await chat.ended()
    assert code == 1
    (line,) = error.strip().splitlines()
    assert line.startswith("web_chat: ")
    assert said in line


async def test_the_gateway_loads_no_model_libraries() -> None:
    code = "import sys, app; sys.exit(' '.join({'pydantic_ai', 'openai', 'agno'} & set(sys.modules)) or None)"
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(APP.parent)])}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
    assert await process.wait() == 0
