"""Wrong requests: each has a code, is answered where an address is known, and holds up or shows nothing.

What is not even a request is a dead letter, and is answered at a usable reply_to; a request that is refused gets a
reply like any other. One worker for all; each test has a session, an address and correlation ids of its own.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from unittest.mock import ANY

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractIncomingMessage
from pamqp import encode

from tests.acceptance.stage import Stage, staged
from tests.support.broker import TestBroker, slot
from tests.support.waiting import eventually
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLY_FIELDS = {
    *("run_id", "session_id", "session_type", "team_id", "agent_id", "workflow_id", "user_id", "status", "content"),
    *("member_responses", "turn", "attempt", "metrics", "error", "created_at", "completed_at"),
}
LARGEST_BYTES = 1_048_576
NO_MESSAGE_ID = "none"
"""The client invents a message_id where there is none; for this one an empty one is sent, which is as good as none."""

Json = dict[str, Any]
Messages = list[AbstractIncomingMessage]


@dataclass(frozen=True)
class Wrong:
    """One way to be wrong."""

    code: str
    change: bytes | Json
    """The body, or the fields in which it differs from a right request; None leaves one out."""
    says: Json = field(default_factory=dict)
    """Where the reply to what is no request names it otherwise than a right one's would."""
    properties: Json = field(default_factory=dict)
    owner: str | None = "owner"
    """Whose the session is in which a request is refused."""


@dataclass(frozen=True)
class Wire:
    """The stage, and everything that came to the dead letters and to the results."""

    stage: Stage
    prefix: str
    results: Messages
    dead: Messages = field(default_factory=list)

    def partition(self, session: str) -> str:
        return f"{self.prefix}.requests.{int(slot(session), 16) % self.stage.settings.partitions}"


@dataclass(frozen=True)
class Inbox:
    """A producer with an address for replies, and what came there."""

    producer: TestBroker
    address: str
    received: Messages = field(default_factory=list)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wire]:
    # The pattern matches queues of the prefix too, which must not matter.
    environment = {"TEAMTURN_REPLY_TO_PATTERN": r"chat-.*|t-.*"}
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates"), environment=environment) as stage:
        wire = Wire(stage, stage.settings.prefix, stage.broker.replies)
        await stage.broker.consume_results()
        await collect(stage.broker, f"{wire.prefix}.dead", wire.dead)
        yield wire


@pytest_asyncio.fixture(loop_scope="module")
async def inbox(wire: Wire) -> AsyncIterator[Inbox]:
    async with inbox_at(wire, "server-named") as inbox:
        yield inbox


@pytest.fixture
def session() -> str:
    return f"session-{uuid.uuid4().hex[:12]}"


async def collect(broker: TestBroker, queue: str, into: Messages) -> None:
    async def received(message: AbstractIncomingMessage) -> None:
        into.append(message)

    await (await broker.channel.get_queue(queue, ensure=False)).consume(received, no_ack=True)


@asynccontextmanager
async def inbox_at(wire: Wire, kind: str) -> AsyncIterator[Inbox]:
    names = {"server-named": None, "pattern": f"chat-{uuid.uuid4()}", "outside the pattern": f"some-{uuid.uuid4()}"}
    async with TestBroker(wire.stage.broker.url, wire.prefix) as producer:
        address = "amq.rabbitmq.reply-to"
        if kind != "direct":
            address = (await producer.channel.declare_queue(names[kind], exclusive=True)).name
        inbox = Inbox(producer, address)
        await collect(producer, address, inbox.received)
        yield inbox


def a_request(session: str, **fields: Any) -> Json:
    return {"run_id": str(uuid.uuid4()), "session_id": session, "team_id": "echo", "input": "hello"} | fields


def changed(request: Json, change: bytes | Json, **known: str) -> Json:
    """The request with other fields; what is known is filled into its ids."""
    assert isinstance(change, dict)
    fields = {name: value for name, value in (request | change).items() if value is not None}
    return fields | {name: fields[name].format(**known) for name in ("run_id", "session_id") if known}


async def publish(producer: TestBroker, body: Json | bytes, session: str, **properties: Any) -> str:
    """Publish in the session's slot; return the correlation id by which to find what comes of it."""
    properties = {"correlation_id": f"c-{uuid.uuid4()}", "routing_key": slot(session)} | properties
    with pytest.MonkeyPatch.context() as patched:
        original = encode.METHODS["shortstr"]
        patched.setitem(encode.METHODS, "shortstr", lambda text: b"\x00" if text == NO_MESSAGE_ID else original(text))
        await producer.publish(body, **properties)
    return str(properties["correlation_id"])


def of(messages: Messages, correlation: str) -> Messages:
    return [message for message in messages if message.correlation_id == correlation]


async def come(messages: Messages, correlation: str, *, times: int = 1) -> Messages:
    """Wait until so many messages have come with the correlation id; return them."""
    await eventually(lambda: len(of(messages, correlation)) >= times)
    return of(messages, correlation)


async def completed(wire: Wire, session: str, **fields: Any) -> Json:
    """Have a right request executed; return its reply."""
    request = a_request(session, **fields)
    await publish(wire.stage.broker, request, session)
    reply = await wire.stage.broker.reply(request["run_id"])
    assert reply["status"] == "COMPLETED"
    return reply


async def everything_is_sorted(wire: Wire, session: str, inbox: Inbox | None = None) -> None:
    """Wait until a broken message behind everything else is a dead letter; with an inbox, until it is answered too."""
    correlation = await publish(wire.stage.broker, b"!", session, reply_to=inbox and inbox.address)
    await come(wire.dead, correlation)
    if inbox is not None:
        await come(inbox.received, correlation)


def rejected(message: AbstractIncomingMessage, code: str) -> Json:
    """The reply in a message, after looking at its form."""
    reply: Json = json.loads(message.body)
    assert (message.type, message.content_type, set(reply)) == ("run.reply", "application/json", REPLY_FIELDS)
    assert (reply["status"], reply["error"]["code"], reply["turn"], reply["content"]) == ("REJECTED", code, None, None)
    assert (set(reply["error"]), bool(reply["error"]["message"])) == ({"code", "message", "retryable"}, True)
    return reply


# --- what is not even a request ---

MESSAGE_ID = "its message_id"
NO_TARGET: Json = {"session_type": None, "team_id": None}
UNREAD: Json = {"run_id": MESSAGE_ID, "session_id": None, **NO_TARGET}
# Whether so large a body is looked into is nowhere said.
TOO_LARGE: Json = {"run_id": MESSAGE_ID, "session_id": ANY, "session_type": ANY, "team_id": ANY}

NO_REQUEST = {
    "not JSON": Wrong("malformed_request", b"{nope", UNREAD),
    "not UTF-8": Wrong("malformed_request", b'{"input": "\xff"}', UNREAD),
    "5,000 levels deep": Wrong("malformed_request", b'{"metadata": ' * 5_000 + b"1" + b"}" * 5_000, UNREAD),
    "a list": Wrong("malformed_request", b"[]", UNREAD),
    "not JSON, and to expire": Wrong("malformed_request", b"{nope", UNREAD, {"expiration": 60}),
    "unknown field": Wrong("invalid_request", {"extra": 1}),
    "input of a wrong type": Wrong("invalid_request", {"input": 42}),
    "state of a wrong type": Wrong("invalid_request", {"session_state": []}),
    "user_id of a wrong type": Wrong("invalid_request", {"user_id": 7}),
    "no target": Wrong("invalid_request", {"team_id": None}, NO_TARGET),
    "two targets": Wrong("invalid_request", {"agent_id": "clerk"}, NO_TARGET),
    "empty target": Wrong("invalid_request", {"team_id": ""}, NO_TARGET),
    "run_id of a wrong type": Wrong("invalid_request", {"run_id": 42}, {"run_id": None}),
    "control character in the run_id": Wrong("invalid_request", {"run_id": "a\nb"}, {"run_id": None}),
    "bad message_id": Wrong("invalid_request", {"run_id": None}, {"run_id": None}, {"message_id": "a\nb"}),
    "session_id of 256 bytes": Wrong("invalid_request", {"session_id": "é" * 128}, {"session_id": None}),
    "unknown field, without a slot": Wrong("invalid_request", {"extra": 1}, properties={"routing_key": "none"}),
    "no run_id": Wrong("missing_run_id", {"run_id": None}, {"run_id": None}, {"message_id": NO_MESSAGE_ID}),
    "oversized": Wrong("request_too_large", {"run_id": None, "input": "x" * LARGEST_BYTES}, TOO_LARGE),
}


@pytest.mark.parametrize("what", NO_REQUEST)
async def test_what_is_no_request_is_a_dead_letter_and_answered_at_its_reply_to_and_the_next_goes_on(
    wire: Wire, inbox: Inbox, session: str, what: str
) -> None:
    case = NO_REQUEST[what]
    request = a_request(session)
    body = case.change if isinstance(case.change, bytes) else json.dumps(changed(request, case.change)).encode()
    properties = {"message_id": f"message-of-{session}", "headers": {"trace": "t1"}, **case.properties}
    correlation = await publish(inbox.producer, body, session, reply_to=inbox.address, **properties)

    (dead,) = await come(wire.dead, correlation)
    queue = f"{wire.prefix}.unrouted" if "routing_key" in properties else wire.partition(session)
    assert (dead.headers["x-teamturn-code"], dead.headers["x-teamturn-queue"]) == (case.code, queue)
    assert dead.headers["x-teamturn-reason"]
    assert datetime.fromisoformat(str(dead.headers["x-teamturn-time"])).utcoffset() is not None
    assert (dead.body, dead.reply_to, dead.headers["trace"]) == (body, inbox.address, "t1")
    assert dead.message_id == properties["message_id"] or properties["message_id"] == NO_MESSAGE_ID

    (answer,) = await come(inbox.received, correlation)
    reply = rejected(answer, case.code)
    expected: Json = {"run_id": request["run_id"], "session_id": session, "session_type": "team", "team_id": "echo"}
    expected |= {"agent_id": None, "workflow_id": None, **case.says}
    if expected["run_id"] == MESSAGE_ID:
        expected["run_id"] = properties["message_id"]
    assert {name: reply[name] for name in expected} == expected
    assert reply["session_id"] in {session, None}  # never one that the message did not name
    assert reply["error"]["retryable"] is False
    assert answer.message_id == reply["run_id"] or reply["run_id"] is None

    assert (await completed(wire, session))["turn"] == 1
    assert of(wire.results, correlation) == []


@pytest.mark.parametrize(
    "address",
    [
        *(None, "{prefix}.dead", "{prefix}.results", "{prefix}.control", "{prefix}.unrouted", "{partition}"),
        *("outside the pattern", "amq.gen-nobody-has-it", "amq.rabbitmq.reply-to.x.y"),
    ],
)
async def test_what_is_no_request_and_has_no_usable_address_is_only_a_dead_letter(
    wire: Wire, inbox: Inbox, session: str, address: str | None
) -> None:
    async with inbox_at(wire, "outside the pattern") as outside:
        reply_to = outside.address if address == "outside the pattern" else address
        reply_to = reply_to and reply_to.format(prefix=wire.prefix, partition=wire.partition(session))
        correlation = await publish(inbox.producer, {"extra": 1}, session, reply_to=reply_to)
        await come(wire.dead, correlation)
        await completed(wire, session)
        await everything_is_sorted(wire, session, inbox)
        found = [len(of(place, correlation)) for place in (wire.dead, wire.results, inbox.received, outside.received)]
    assert found == [1, 0, 0, 0]
    assert await wire.stage.broker.depth("control") == 0


@pytest.mark.parametrize("kind", ["direct", "pattern"])
@pytest.mark.parametrize(("fields", "code"), [({"extra": 1}, "invalid_request"), ({"team_id": "x"}, "unknown_target")])
async def test_every_usable_address_gets_the_refusal(
    wire: Wire, session: str, kind: str, fields: Json, code: str
) -> None:
    async with inbox_at(wire, kind) as inbox:
        request = a_request(session, **fields)
        await publish(inbox.producer, request, session, reply_to=inbox.address, correlation_id=None)
        (answer,) = await come(inbox.received, request["run_id"])  # the correlation id where there was none
    rejected(answer, code)


# --- a request that is refused ---

REFUSED = {
    "expiration": Wrong("unsupported_property", {}, properties={"expiration": 60}),
    "priority": Wrong("unsupported_property", {}, properties={"priority": 1}),
    "unknown target": Wrong("unknown_target", {"session_id": "{session}-new", "team_id": "nobody"}),
    "another user's session": Wrong("session_forbidden", {"user_id": "stranger"}),
    "somebody's session, no user": Wrong("session_forbidden", {"user_id": None}),
    "nobody's session, a user": Wrong("session_forbidden", {"user_id": "stranger"}, owner=None),
    "another team": Wrong("session_target_mismatch", {"team_id": "remembers"}),
    "another kind of target": Wrong("session_target_mismatch", {"team_id": None, "agent_id": "clerk"}),
    "run_id of another input": Wrong("run_id_conflict", {"run_id": "{opened}", "input": "other"}),
    "run_id of another user": Wrong("run_id_conflict", {"run_id": "{opened}", "user_id": "stranger"}),
    "run_id of another session": Wrong("run_id_conflict", {"run_id": "{opened}", "session_id": "{session}-new"}),
    "past deadline": Wrong("deadline_exceeded", {"deadline": "2020-01-01T00:00:00Z"}),
}


async def refusable(wire: Wire, session: str, case: Wrong) -> Json:
    """Open the session, and return the request that is refused there."""
    opened = await completed(wire, session, user_id=case.owner)
    return changed(a_request(session, user_id=case.owner), case.change, session=session, opened=opened["run_id"])


@pytest.mark.parametrize("address", ["usable", "forbidden", "none"])
@pytest.mark.parametrize("what", REFUSED)
async def test_a_refused_request_is_answered_and_no_dead_letter_and_the_next_goes_on(
    wire: Wire, inbox: Inbox, session: str, what: str, address: str
) -> None:
    case = REFUSED[what]
    request = await refusable(wire, session, case)
    reply_to = {"usable": inbox.address, "forbidden": f"{wire.prefix}.dead", "none": None}[address]
    right, wrong = (inbox.received, wire.results) if address == "usable" else (wire.results, inbox.received)
    correlation = await publish(inbox.producer, request, request["session_id"], reply_to=reply_to, **case.properties)

    (answer,) = await come(right, correlation)
    reply = rejected(answer, case.code)
    named = {name: request.get(name) for name in ("run_id", "session_id", "team_id", "agent_id", "user_id")}
    assert {name: reply[name] for name in named} == named
    assert (answer.message_id, reply["session_type"]) == (request["run_id"], "agent" if named["agent_id"] else "team")

    assert (await completed(wire, session, user_id=case.owner))["turn"] == 2
    await everything_is_sorted(wire, request["session_id"])
    assert [len(of(place, correlation)) for place in (right, wrong, wire.dead)] == [1, 0, 0]


@pytest.mark.parametrize("what", REFUSED)
async def test_the_same_refused_request_five_times_gets_five_times_the_same_bytes(
    wire: Wire, inbox: Inbox, session: str, what: str
) -> None:
    request = await refusable(wire, session, REFUSED[what])
    properties = {"reply_to": inbox.address, "correlation_id": session, **REFUSED[what].properties}
    await publish(inbox.producer, request, request["session_id"], **properties)
    (first,) = await come(inbox.received, session)
    since = int(time.time())
    await eventually(lambda: int(time.time()) > since)  # replies hold times in whole seconds
    for _ in range(4):
        await publish(inbox.producer, request, request["session_id"], **properties)
    answers = await come(inbox.received, session, times=5)
    rejected(first, REFUSED[what].code)
    assert [answer.body for answer in answers] == [first.body] * 5


# --- reply_to ---


@pytest.mark.parametrize("address", ["dead", "results", "control", "unrouted", "requests.0", "outside the pattern"])
async def test_a_request_with_a_forbidden_reply_to_is_executed_and_its_reply_in_the_results_says_so(
    wire: Wire, session: str, address: str
) -> None:
    async with inbox_at(wire, "outside the pattern") as outside:
        reply_to = outside.address if " " in address else f"{wire.prefix}.{address}"
        request = a_request(session)
        for times in (1, 2):  # executed, and replayed
            await publish(outside.producer, request, session, reply_to=reply_to, correlation_id=session)
            await come(wire.results, session, times=times)
        await everything_is_sorted(wire, session)
        assert (outside.received, of(wire.dead, session), await wire.stage.broker.depth("control")) == ([], [], 0)
    replies = of(wire.results, session)
    assert len({reply.body for reply in replies}) == 1
    assert [json.loads(reply.body)["status"] for reply in replies] == ["COMPLETED"] * 2
    assert [reply.headers.get("x-teamturn-code") for reply in replies] == ["reply_to_forbidden"] * 2


@pytest.mark.parametrize("address", ["none", "gone", "server-named", "pattern"])
async def test_a_reply_that_went_where_it_should_does_not_say_so(wire: Wire, session: str, address: str) -> None:
    async with inbox_at(wire, "pattern" if address == "pattern" else "server-named") as inbox:
        reply_to = {"none": None, "gone": f"chat-gone-{session}"}.get(address, inbox.address)
        correlation = await publish(inbox.producer, a_request(session), session, reply_to=reply_to)
        (reply,) = await come(wire.results if address in {"none", "gone"} else inbox.received, correlation)
    assert json.loads(reply.body)["status"] == "COMPLETED"
    assert "x-teamturn-code" not in reply.headers


# --- nothing of another user's is shown ---

STRANGERS: dict[str, Json] = {
    "asks": {},
    "asks for nobody": {"user_id": None},
    "brings a state": {"session_state": {"colour": "stranger"}},
    "names an unknown target": {"team_id": "nobody"},
    "is late": {"deadline": "2020-01-01T00:00:00Z"},
    "sends no request": {"extra": 1},
    "has the run_id": {"run_id": "{opened}"},
    "has the run_id, for nobody": {"run_id": "{opened}", "user_id": None},
    "has the run_id, elsewhere": {"run_id": "{opened}", "session_id": "new-{opened}"},
    "has the run_id, and sends no request": {"run_id": "{opened}", "team_id": None},
}


@pytest.mark.parametrize(
    ("owner", "stranger"),
    [*(("confidential-user", stranger) for stranger in STRANGERS), (None, "asks"), (None, "has the run_id")],
)
async def test_a_stranger_is_shown_nothing_of_a_session_and_changes_nothing_in_it(
    wire: Wire, inbox: Inbox, session: str, owner: str | None, stranger: str
) -> None:
    mine: Json = {"session_state": {"colour": "confidential-state"}, "metadata": {"channel": "confidential-channel"}}
    mine |= {"team_id": "remembers", "user_id": owner}
    opened = await completed(wire, session, input="confidential-input", **mine)
    theirs = a_request(session, user_id="stranger", input="stranger", metadata={"channel": "stranger"})
    request = changed(theirs, STRANGERS[stranger], opened=opened["run_id"])
    correlation = await publish(inbox.producer, request, request["session_id"], reply_to=inbox.address)
    (answer,) = await come(inbox.received, correlation)
    await everything_is_sorted(wire, request["session_id"])

    assert json.loads(answer.body)["status"] == "REJECTED"
    shown = [answer.body, repr(answer.headers).encode()]
    shown += [repr(letter.headers).encode() for letter in of(wire.dead, correlation)]
    secrets = {"confidential", "remembers", opened["run_id"], session} - {request["run_id"], request["session_id"]}
    assert [text for text in shown if any(secret.encode() in text for secret in secrets)] == []

    following = await completed(wire, session, input="mine", team_id="remembers", user_id=owner)
    state = mine["session_state"] | {"seen": 2}
    expected = {"history": ["confidential-input"], "state": state, "metadata": mine["metadata"]}
    assert (following["turn"], following["content"]) == (2, expected)
