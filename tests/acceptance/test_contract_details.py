"""What the contract says of requests and replies, one claim a test, on one worker."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from tests.acceptance.stage import NEWSROOM, TEAMS, Stage, json_of, staged
from tests.data.acceptance_teams import ERRORS, SECRET_OF_THE_EXECUTOR
from tests.support.broker import TestBroker, slot
from tests.support.waiting import eventually
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

TURN_TIMEOUT_SECONDS = 3
LARGEST_BYTES = 1_048_576
"""The documented default of MAX_REQUEST_BYTES."""

SESSION_COLUMNS = [
    *("session_id", "session_type", "agent_id", "team_id", "workflow_id", "user_id", "session_data", "agent_data"),
    *("team_data", "workflow_data", "metadata", "runs", "summary", "created_at", "updated_at"),
]
REPLY_FIELDS = {
    *("run_id", "session_id", "session_type", "team_id", "agent_id", "workflow_id", "user_id", "status", "content"),
    *("member_responses", "turn", "attempt", "metrics", "error", "created_at", "completed_at"),
}
METRICS = {
    *("input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls", "duration", "queue_time"),
}

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One worker for all; each test has sessions of its own."""
    async with staged(
        sandbox,
        template,
        tmp_path_factory.mktemp("gates"),
        teams=f"{TEAMS},{NEWSROOM}",
        environment={
            "TEAMTURN_TURN_TIMEOUT": str(TURN_TIMEOUT_SECONDS),
            # It matches queues of the prefix too, which must not matter.
            "TEAMTURN_REPLY_TO_PATTERN": r"chat-.*|t-.*",
        },
    ) as stage:
        yield stage


@pytest.fixture
def session() -> str:
    """A session id of the test's own."""
    return f"session-{uuid.uuid4().hex[:12]}"


def a_request(session: str, **fields: Any) -> Json:
    return {"run_id": str(uuid.uuid4()), "session_id": session, "team_id": "echo", "input": "hello"} | fields


async def replies_to(stage: Stage, request: Json, *, times: int, **properties: Any) -> list[AbstractIncomingMessage]:
    """Publish a request so many times, each when the last one is answered; return the replies to these."""
    await stage.broker.consume_results()

    def replies() -> list[AbstractIncomingMessage]:
        return [one for one in stage.broker.replies if one.message_id == request["run_id"]]

    async def more_than(number: int) -> None:
        await eventually(lambda: len(replies()) > number)

    before = len(replies())
    for number in range(before, before + times):
        await stage.broker.publish(request, **properties)
        await more_than(number)
    return replies()[before:]


async def reply_to(stage: Stage, request: Json) -> Json:
    await stage.broker.publish(request)
    return await stage.broker.reply(request["run_id"])


async def the_next_second(since: float) -> None:
    """Wait until the clock shows another whole second: replies hold times in whole seconds."""
    await eventually(lambda: int(time.time()) > int(since))


async def taken_from(queue: AbstractQueue) -> AbstractIncomingMessage:
    """Take the next message of a queue."""
    found: list[AbstractIncomingMessage] = []

    async def one_came() -> bool:
        message = await queue.get(fail=False)
        if message is not None:
            found.append(message)
        return message is not None

    await eventually(one_came)
    return found[0]


# --- the reply ---


async def test_a_reply_has_the_documented_fields_and_no_others(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, user_id="u1"))
    assert set(reply) == REPLY_FIELDS
    assert set(reply["metrics"]) == METRICS


async def test_a_reply_says_whose_it_is_and_what_came_of_it(stage: Stage, session: str) -> None:
    request = a_request(session, user_id="u1", input="hi")
    reply = await reply_to(stage, request)
    expected = {"run_id": request["run_id"], "session_id": session, "session_type": "team", "team_id": "echo"}
    expected |= {"agent_id": None, "workflow_id": None, "user_id": "u1", "status": "COMPLETED", "content": "hi"}
    expected |= {"member_responses": [], "turn": 1, "attempt": 1, "error": None}
    assert {name: reply[name] for name in expected} == expected


async def test_a_replys_properties_are_the_documented_ones(stage: Stage, session: str) -> None:
    request = a_request(session)
    await stage.broker.publish(request, correlation_id="the-producers-own")
    reply = await stage.broker.reply_message(request["run_id"])
    assert (reply.message_id, reply.correlation_id, reply.type, reply.delivery_mode, reply.content_type) == (
        *(request["run_id"], "the-producers-own", "run.reply", aio_pika.DeliveryMode.PERSISTENT, "application/json"),
    )


async def test_a_reply_is_correlated_by_the_run_id_where_the_request_had_no_correlation_id(
    stage: Stage, session: str
) -> None:
    request = a_request(session)
    await stage.broker.publish(request)
    assert (await stage.broker.reply_message(request["run_id"])).correlation_id == request["run_id"]


@pytest.mark.parametrize(
    ("kind", "target"), [("team", "echo"), ("agent", "clerk"), ("workflow", "pipeline")], ids=lambda value: value
)
async def test_replies_are_routed_by_kind_and_id_of_their_target(
    stage: Stage, session: str, kind: str, target: str
) -> None:
    watched = await stage.broker.channel.declare_queue(exclusive=True)
    await watched.bind(f"{stage.settings.prefix}.results", f"{kind}.{target}")
    request = a_request(session) | {"team_id": None, f"{kind}_id": target}
    await stage.broker.publish(request)
    message = await taken_from(watched)
    await watched.delete(if_empty=False)
    assert (message.message_id, message.routing_key) == (request["run_id"], f"{kind}.{target}")


async def test_turns_are_counted_from_1_in_each_session(stage: Stage, session: str) -> None:
    replies = [await reply_to(stage, a_request(session)) for _ in range(3)]
    assert [reply["turn"] for reply in replies] == [1, 2, 3]


async def test_a_refused_request_has_no_turn_and_takes_none(stage: Stage, session: str) -> None:
    await reply_to(stage, a_request(session, user_id="owner"))
    refused = await reply_to(stage, a_request(session, user_id="stranger"))
    following = await reply_to(stage, a_request(session, user_id="owner"))
    assert (refused["turn"], following["turn"]) == (None, 2)


# --- ids ---


async def test_a_request_without_a_session_has_its_run_id_for_one(stage: Stage) -> None:
    run_id = str(uuid.uuid4())
    reply = await reply_to(stage, {"run_id": run_id, "team_id": "echo", "input": "hi"})
    assert reply["session_id"] == run_id
    assert [run["run_id"] for run in await stage.runs(run_id)] == [run_id]


async def test_a_request_without_a_run_id_has_its_message_id_for_one(stage: Stage, session: str) -> None:
    request = a_request(session)
    message_id = request.pop("run_id")
    await stage.broker.publish(request, message_id=message_id)
    assert (await stage.broker.reply(message_id))["run_id"] == message_id


async def test_the_run_id_of_the_body_goes_before_the_message_id(stage: Stage, session: str) -> None:
    request = a_request(session)
    await stage.broker.publish(request, message_id="another")
    assert (await stage.broker.reply(request["run_id"]))["run_id"] == request["run_id"]


async def test_ids_of_255_bytes_are_taken(stage: Stage) -> None:
    longest = {name: "é" * 123 + uuid.uuid4().hex[:9] for name in ("run_id", "session_id", "user_id")}
    assert {len(value.encode()) for value in longest.values()} == {255}
    reply = await reply_to(stage, {**longest, "team_id": "echo", "input": "hi"})
    assert {name: reply[name] for name in longest} == longest
    assert reply["status"] == "COMPLETED"


async def test_a_target_of_255_bytes_that_nobody_knows_is_answered(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="t" * 255))
    assert reply["error"]["code"] == "unknown_target"


# --- the way to the partition ---


async def test_a_request_with_another_sessions_slot_is_passed_on_with_its_properties(
    stage: Stage, session: str
) -> None:
    request = a_request(session)
    elsewhere = f"{(int(slot(session), 16) + 1) % 256:02x}"
    await stage.broker.publish(request, routing_key=elsewhere, correlation_id="kept")
    reply = await stage.broker.reply_message(request["run_id"])
    assert (reply.correlation_id, json.loads(reply.body)["status"]) == ("kept", "COMPLETED")


@pytest.mark.parametrize("key", ["", "the session id"])
async def test_a_request_without_a_slot_is_answered_where_its_reply_to_says(
    stage: Stage, session: str, key: str
) -> None:
    mine = await stage.broker.channel.declare_queue(exclusive=True)
    request = a_request(session)
    await stage.broker.publish(request, routing_key=key and session, reply_to=mine.name)
    message = await taken_from(mine)
    await mine.delete(if_empty=False)
    assert message.message_id == request["run_id"]


# --- reply_to ---


async def test_a_server_named_queue_gets_the_reply(stage: Stage, session: str) -> None:
    mine = await stage.broker.channel.declare_queue(exclusive=True)
    assert mine.name.startswith("amq.gen-")
    request = a_request(session)
    await stage.broker.publish(request, reply_to=mine.name)
    message = await taken_from(mine)
    await mine.delete(if_empty=False)
    assert (message.message_id, json.loads(message.body)["content"]) == (request["run_id"], "hello")


async def test_direct_reply_to_gets_the_reply(stage: Stage, session: str) -> None:
    received: list[AbstractIncomingMessage] = []

    async def receive(message: AbstractIncomingMessage) -> None:
        received.append(message)

    async with TestBroker(stage.broker.url, stage.settings.prefix) as producer:
        direct = await producer.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await direct.consume(receive, no_ack=True)
        request = a_request(session)
        await producer.publish(request, reply_to="amq.rabbitmq.reply-to")
        await eventually(lambda: bool(received))
    assert [message.message_id for message in received] == [request["run_id"]]


async def test_a_queue_that_the_pattern_allows_gets_the_reply(stage: Stage, session: str) -> None:
    mine = await stage.broker.channel.declare_queue(f"chat-{session}", exclusive=True)
    request = a_request(session)
    await stage.broker.publish(request, reply_to=mine.name)
    message = await taken_from(mine)
    await mine.delete(if_empty=False)
    assert message.message_id == request["run_id"]


async def test_a_queue_that_only_contains_what_the_pattern_allows_does_not_get_the_reply(
    stage: Stage, session: str
) -> None:
    theirs = await stage.broker.channel.declare_queue(f"not-a-chat-{session}", exclusive=True)
    request = a_request(session)
    await stage.broker.publish(request, reply_to=theirs.name)
    await stage.broker.reply(request["run_id"])
    left = (await theirs.delete(if_empty=False)).message_count
    assert left == 0


@pytest.mark.parametrize("queue", ["dead", "unrouted", "requests.0", "control"])
async def test_a_queue_of_the_prefix_never_gets_the_reply(stage: Stage, session: str, queue: str) -> None:
    request = a_request(session)
    await stage.broker.publish(request, reply_to=f"{stage.settings.prefix}.{queue}")
    assert (await stage.broker.reply(request["run_id"]))["status"] == "COMPLETED"
    assert await stage.broker.depth("dead") == 0


async def test_a_queue_of_somebody_else_does_not_get_the_reply(stage: Stage, session: str) -> None:
    theirs = await stage.broker.channel.declare_queue(f"theirs-{session}", exclusive=True)
    request = a_request(session)
    await stage.broker.publish(request, reply_to=theirs.name)
    await stage.broker.reply(request["run_id"])
    left = (await theirs.delete(if_empty=False)).message_count
    assert left == 0


@pytest.mark.parametrize("queue", ["amq.gen-nobody-has-this-queue", "chat-gone"])
async def test_the_reply_goes_to_the_results_if_its_queue_is_gone(stage: Stage, session: str, queue: str) -> None:
    request = a_request(session)
    await stage.broker.publish(request, reply_to=queue)
    assert (await stage.broker.reply(request["run_id"]))["status"] == "COMPLETED"


# --- rights, targets, run_ids ---


@pytest.mark.parametrize(
    ("owner", "other"), [("u1", "u2"), ("u1", None), (None, "u1")], ids=["another", "nobody", "nobodys session"]
)
async def test_a_session_is_refused_to_everybody_but_its_user(
    stage: Stage, session: str, owner: str | None, other: str | None
) -> None:
    first = await reply_to(stage, a_request(session, user_id=owner))
    reply = await reply_to(stage, a_request(session, user_id=other))
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "session_forbidden")
    assert [run["run_id"] for run in await stage.runs(session)] == [first["run_id"]]


@pytest.mark.parametrize(
    "target", [{"team_id": "remembers"}, {"team_id": None, "agent_id": "clerk"}], ids=["team", "agent"]
)
async def test_a_session_keeps_the_target_that_it_began_with(stage: Stage, session: str, target: Json) -> None:
    await reply_to(stage, a_request(session))
    reply = await reply_to(stage, a_request(session, **target))
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "session_target_mismatch")


@pytest.mark.parametrize("target", ["team_id", "agent_id", "workflow_id"])
async def test_a_target_that_nobody_serves_is_refused(stage: Stage, session: str, target: str) -> None:
    reply = await reply_to(stage, a_request(session) | {"team_id": None, target: "nobody"})
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "unknown_target")
    assert await stage.runs(session) == []


@pytest.mark.parametrize(
    "different",
    [
        {"input": "something else"},
        {"user_id": "somebody-else"},
        {"team_id": "remembers"},
        {"metadata": {"channel": "web"}},
        {"session_state": {"a": 1}},
        {"session_id": "another-session"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_run_id_used_for_something_different_is_a_conflict_that_shows_nothing_of_the_other_run(
    stage: Stage, session: str, different: Json
) -> None:
    first = a_request(session, user_id="owner", input="a private matter")
    await reply_to(stage, first)
    (conflict,) = await replies_to(stage, first | different, times=1)
    reply = json.loads(conflict.body)
    assert (reply["status"], reply["error"]["code"], reply["turn"]) == ("REJECTED", "run_id_conflict", None)
    assert b"a private matter" not in conflict.body


async def test_the_same_request_five_times_is_one_run_and_five_times_the_same_bytes(stage: Stage, session: str) -> None:
    request = a_request(session)
    replies = await replies_to(stage, request, times=5)
    assert len({reply.body for reply in replies}) == 1
    assert [run["run_id"] for run in await stage.runs(session)] == [request["run_id"]]


async def test_the_same_request_written_otherwise_is_the_same_request(stage: Stage, session: str) -> None:
    request = a_request(session, metadata={"a": 1, "b": 2})
    await stage.broker.publish(request)
    first = await stage.broker.reply_message(request["run_id"])
    otherwise = json.dumps({**dict(reversed(request.items())), "metadata": {"b": 2, "a": 1}}, indent=2).encode()
    await stage.broker.publish(otherwise, routing_key=slot(session))
    run_id = request["run_id"]
    await eventually(lambda: len([one for one in stage.broker.replies if one.message_id == run_id]) == 2)
    assert {one.body for one in stage.broker.replies if one.message_id == run_id} == {first.body}


REFUSED: dict[str, tuple[Json, Json]] = {
    "deadline_exceeded": ({"deadline": "2020-01-01T00:00:00Z"}, {}),
    "unknown_target": ({"team_id": "nobody"}, {}),
    "session_forbidden": ({"user_id": "stranger"}, {}),
    "session_target_mismatch": ({"team_id": "remembers"}, {}),
    "unsupported_property": ({}, {"priority": 1}),
}


@pytest.mark.parametrize("code", REFUSED)
async def test_a_refused_request_sent_again_gets_the_same_bytes(stage: Stage, session: str, code: str) -> None:
    fields, properties = REFUSED[code]
    earlier = a_request(session)
    if code != "unknown_target":
        await reply_to(stage, earlier)
    request = a_request(session, **fields)
    first, *_ = await replies_to(stage, request, times=1, **properties)
    assert json.loads(first.body)["error"]["code"] == code
    await the_next_second(json.loads(first.body)["completed_at"])
    again, *_ = await replies_to(stage, request, times=1, **properties)
    assert again.body == first.body


async def test_a_conflict_that_is_delivered_again_gets_the_same_bytes(stage: Stage, session: str) -> None:
    """It can't be stored under a run_id that is taken: its times are those of the message."""
    earlier = a_request(session)
    await reply_to(stage, earlier)
    different = earlier | {"input": "something else"}
    published = datetime.now(UTC)
    first, *_ = await replies_to(stage, different, times=1, timestamp=published)
    assert json.loads(first.body)["error"]["code"] == "run_id_conflict"
    await the_next_second(json.loads(first.body)["completed_at"])
    again, *_ = await replies_to(stage, different, times=1, timestamp=published)
    assert again.body == first.body


# --- time ---


async def test_a_request_past_its_deadline_is_refused_and_not_run(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, deadline="2020-01-01T00:00:00Z"))
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "deadline_exceeded")
    assert await stage.runs(session) == []


async def test_a_request_before_its_deadline_is_run(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, deadline="2100-01-01T00:00:00+01:00"))
    assert reply["status"] == "COMPLETED"


async def test_a_finished_run_is_answered_again_after_its_deadline(stage: Stage, session: str) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=2)
    request = a_request(session, deadline=deadline.isoformat())
    (first,) = await replies_to(stage, request, times=1)
    await eventually(lambda: datetime.now(UTC) > deadline)
    (again,) = await replies_to(stage, request, times=1)
    assert (json.loads(first.body)["status"], again.body) == ("COMPLETED", first.body)


async def test_a_turn_that_runs_into_its_deadline_is_an_error_and_stored(stage: Stage, session: str) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=TURN_TIMEOUT_SECONDS / 2)
    reply = await reply_to(stage, a_request(session, team_id="endless", deadline=deadline.isoformat()))
    assert (reply["status"], reply["error"]["code"], reply["turn"]) == ("ERROR", "deadline_exceeded", 1)
    assert [run["status"] for run in await stage.runs(session)] == ["ERROR"]


async def test_a_turn_that_runs_too_long_is_an_error_and_stored(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="endless"))
    assert (reply["status"], reply["error"]["code"], reply["turn"]) == ("ERROR", "turn_timeout", 1)
    assert [run["status"] for run in await stage.runs(session)] == ["ERROR"]


async def test_a_turn_that_will_not_be_cancelled_is_ended_by_the_turn_timeout_as_well(
    stage: Stage, session: str
) -> None:
    run_id = await stage.broker.ask(session, "never", team_id="stubborn")
    reply = await stage.broker.reply(run_id, seconds=TURN_TIMEOUT_SECONDS + 10)
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "turn_timeout")


async def test_a_turn_that_runs_too_long_does_not_hold_up_other_sessions(stage: Stage, session: str) -> None:
    slow = a_request(f"{session}-slow", team_id="endless")
    await stage.broker.publish(slow)
    quick = await reply_to(stage, a_request(session))
    answered = {one.message_id for one in stage.broker.replies}
    assert quick["status"] == "COMPLETED"
    assert slow["run_id"] not in answered
    await stage.broker.reply(slow["run_id"])


# --- an executor that fails ---


@pytest.mark.parametrize("error", ERRORS)
async def test_an_executor_that_raises_is_an_error_and_stored(stage: Stage, session: str, error: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="broken", input=error))
    assert (reply["status"], reply["error"]["code"], reply["turn"]) == ("ERROR", "executor_failed", 1)
    assert [run["status"] for run in await stage.runs(session)] == ["ERROR"]


async def test_what_an_executor_raises_is_shown_to_nobody(stage: Stage, session: str) -> None:
    request = a_request(session, team_id="broken")
    await stage.broker.publish(request)
    message = await stage.broker.reply_message(request["run_id"])
    assert SECRET_OF_THE_EXECUTOR.encode() not in message.body
    assert SECRET_OF_THE_EXECUTOR not in json.dumps(await stage.runs(session))


async def test_what_an_executor_left_in_the_state_when_it_raised_is_not_stored(stage: Stage, session: str) -> None:
    await reply_to(stage, a_request(session, team_id="broken"))
    data = await stage.database.fetchval("select session_data from ai.sessions where session_id = $1", session)
    assert json_of(data)["session_state"] == {}


async def test_a_session_goes_on_after_an_error(stage: Stage, session: str) -> None:
    await reply_to(stage, a_request(session, team_id="broken"))
    reply = await reply_to(stage, a_request(session, team_id="broken"))
    assert reply["turn"] == 2


async def test_a_session_that_is_deleted_while_its_turn_runs_stays_deleted(stage: Stage, session: str) -> None:
    stage.gates.open("before")
    await reply_to(stage, a_request(session, team_id="gated", input="before"))
    request = a_request(session, team_id="gated", input="deletion")
    await stage.broker.publish(request)
    await stage.gates.reached("deletion")
    await stage.database.execute("delete from ai.agno_sessions where session_id = $1", session)
    stage.gates.open("deletion")
    reply = await stage.broker.reply(request["run_id"])
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "session_deleted")
    assert await stage.database.fetchval("select count(*) from ai.sessions where session_id = $1", session) == 0


# --- what is no request ---

NO_REQUEST: dict[str, tuple[bytes, str]] = {
    "no json": (b"{nope", "malformed_request"),
    "no utf-8": (b'{"input": "\xff"}', "malformed_request"),
    "a list": (b"[]", "malformed_request"),
    "empty": (b"", "malformed_request"),
    "deeply nested": (b'{"metadata": ' * 3_000 + b"1" + b"}" * 3_000, "malformed_request"),
    "unknown field": (json.dumps(a_request("s") | {"extra": 1}).encode(), "invalid_request"),
    "no target": (json.dumps(a_request("s") | {"team_id": None}).encode(), "invalid_request"),
    "two targets": (json.dumps(a_request("s") | {"agent_id": "clerk"}).encode(), "invalid_request"),
    "no input": (json.dumps(a_request("s") | {"input": None}).encode(), "invalid_request"),
    "id of 256 bytes": (json.dumps(a_request("é" * 128)).encode(), "invalid_request"),
    "empty id": (json.dumps(a_request("")).encode(), "invalid_request"),
    "control character in an id": (json.dumps(a_request("a\nb")).encode(), "invalid_request"),
    "deadline without an offset": (
        json.dumps(a_request("s", deadline="2030-01-01T00:00:00")).encode(),
        "invalid_request",
    ),
    "too large": (json.dumps(a_request("s", input="x" * LARGEST_BYTES)).encode(), "request_too_large"),
}


@pytest.mark.parametrize("what", NO_REQUEST)
async def test_what_is_no_request_goes_to_the_dead_letters_with_its_code(stage: Stage, session: str, what: str) -> None:
    body, code = NO_REQUEST[what]
    await stage.broker.publish(body, routing_key=slot(session), message_id="its-message-id")
    dead = await stage.broker.dead_letter()
    assert dead.body == body
    assert code in {str(value) for value in dead.headers.values()}


@pytest.mark.parametrize("what", ["no json", "unknown field", "too large"])
async def test_the_request_behind_what_is_none_goes_on(stage: Stage, session: str, what: str) -> None:
    request = a_request(session)
    await stage.broker.publish(NO_REQUEST[what][0], routing_key=slot(session))
    await stage.broker.publish(request)
    assert (await stage.broker.reply(request["run_id"]))["status"] == "COMPLETED"
    await stage.broker.dead_letter()


async def test_a_request_of_exactly_the_largest_size_is_run(stage: Stage, session: str) -> None:
    request = a_request(session, input="")
    request["input"] = "x" * (LARGEST_BYTES - len(json.dumps(request).encode()))
    assert len(json.dumps(request).encode()) == LARGEST_BYTES
    assert (await reply_to(stage, request))["status"] == "COMPLETED"


@pytest.mark.parametrize("properties", [{"expiration": 60}, {"priority": 1}], ids=lambda given: next(iter(given)))
@pytest.mark.parametrize("way", ["slot", "roundabout"])
async def test_a_request_that_the_broker_could_drop_or_reorder_is_refused(
    stage: Stage, session: str, properties: Json, way: str
) -> None:
    request = a_request(session)
    await stage.broker.publish(request, routing_key=None if way == "slot" else session, **properties)
    reply = await stage.broker.reply(request["run_id"])
    assert (reply["status"], reply["error"]["code"]) == ("REJECTED", "unsupported_property")
    assert await stage.runs(session) == []


async def test_priority_0_is_none(stage: Stage, session: str) -> None:
    request = a_request(session)
    await stage.broker.publish(request, priority=0)
    assert (await stage.broker.reply(request["run_id"]))["status"] == "COMPLETED"


# --- what is stored ---


async def test_the_view_shows_the_fifteen_columns_in_order_with_both_runs(stage: Stage, session: str) -> None:
    asked = [a_request(session, input="first"), a_request(session, input="second")]
    for request in asked:
        await reply_to(stage, request)
    row = await stage.database.fetchrow("select * from ai.sessions where session_id = $1", session)
    assert row is not None
    assert list(row.keys()) == SESSION_COLUMNS
    runs = [(run["run_id"], run["input"]["input_content"], run["status"]) for run in json_of(row["runs"])]
    assert runs == [(request["run_id"], request["input"], "COMPLETED") for request in asked]


async def test_a_turn_is_given_the_last_three_runs_oldest_first(stage: Stage, session: str) -> None:
    replies = [await reply_to(stage, a_request(session, team_id="remembers", input=f"q{n}")) for n in range(5)]
    assert [reply["content"]["history"] for reply in replies] == [
        [],
        ["q0"],
        ["q0", "q1"],
        ["q0", "q1", "q2"],
        ["q1", "q2", "q3"],
    ]


async def test_state_and_metadata_of_a_request_are_merged_over_what_is_stored(stage: Stage, session: str) -> None:
    first = {"session_state": {"a": 1, "b": 1}, "metadata": {"m": 1, "n": 1}}
    second = {"session_state": {"b": 2}, "metadata": {"n": 2}}
    await reply_to(stage, a_request(session, team_id="remembers", **first))
    reply = await reply_to(stage, a_request(session, team_id="remembers", **second))
    assert reply["content"]["state"] == {"a": 1, "b": 2, "seen": 2}
    assert reply["content"]["metadata"] == {"m": 1, "n": 2}
    row = await stage.database.fetchrow(
        "select session_data -> 'session_state', metadata from ai.sessions where session_id = $1", session
    )
    assert row is not None
    assert [json_of(value) for value in row] == [{"a": 1, "b": 2, "seen": 2}, {"m": 1, "n": 2}]


async def test_an_input_of_parts_is_taken_and_its_text_is_the_turns_input(stage: Stage, session: str) -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "binary", "media_type": "image/png", "data": "iVBORw0KGgo="},
    ]
    reply = await reply_to(stage, a_request(session, input=parts))
    assert (reply["status"], reply["content"]) == ("COMPLETED", "what is this?")


# --- a team with members ---


async def test_a_team_answers_from_what_its_members_found_and_lists_them(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="newsroom"))
    assert reply["content"] == "it rains and roads are wet"
    assert sorted(reply["member_responses"], key=lambda member: str(member["member_id"])) == [
        {"member_id": "traffic", "content": "roads are wet", "status": "COMPLETED"},
        {"member_id": "weather", "content": "it rains", "status": "COMPLETED"},
    ]


async def test_members_runs_are_stored_below_the_teams_run_and_before_it(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="newsroom"))
    rows = await stage.database.fetch(
        "select run_id, parent_run_id, agent_id, team_id, status, run_index from ai.agno_runs where session_id = $1",
        session,
    )
    (own,) = [row for row in rows if row["parent_run_id"] is None]
    members = [row for row in rows if row["parent_run_id"] is not None]
    assert own["run_id"] == reply["run_id"]
    assert {row["agent_id"]: (row["parent_run_id"], row["status"]) for row in members} == {
        "weather": (reply["run_id"], "COMPLETED"),
        "traffic": (reply["run_id"], "COMPLETED"),
    }
    assert all(row["run_index"] < own["run_index"] for row in members)


async def test_a_teams_metrics_count_the_requests_of_leader_and_members(stage: Stage, session: str) -> None:
    reply = await reply_to(stage, a_request(session, team_id="newsroom"))
    # The leader twice, each member once; the leader's two delegations.
    assert (reply["metrics"]["model_requests"], reply["metrics"]["tool_calls"]) == (4, 2)


# --- many at once ---


async def test_one_run_id_in_two_sessions_at_once_is_one_run_and_one_conflict(stage: Stage, session: str) -> None:
    run_id = str(uuid.uuid4())
    await stage.broker.consume_results()
    await asyncio.gather(
        *(stage.broker.publish(a_request(f"{session}-{number}", run_id=run_id)) for number in range(2))
    )
    await eventually(lambda: len([one for one in stage.broker.replies if one.message_id == run_id]) == 2)
    replies = [json.loads(one.body) for one in stage.broker.replies if one.message_id == run_id]
    assert sorted(reply["status"] for reply in replies) == ["COMPLETED", "REJECTED"]
