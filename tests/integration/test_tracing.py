"""Traces: from a request's headers through each part of its turn to its reply's, and nothing of the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import JsonValue
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

from schemas.requests import RunRequest
from tests.acceptance.stage import worker_on
from tests.support.broker import TestBroker, slot
from tests.support.fleet import Gate, echo
from tests.support.spans import Spans, parent_of, sdk, trace_of
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.models import responses, text
from worker.client import RunClient
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings
from worker.team.team import Team

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"
SECRET = "hunter2hunter2"


@executor("priced")
async def priced(turn: Turn) -> JsonValue:
    return await turn.step("price", lambda: f"the price of {turn.input}")  # type: ignore[no-any-return]


@executor("broken")
async def broken(turn: Turn) -> JsonValue:
    raise ValueError(turn.input)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    with sdk(monkeypatch) as spans:
        yield spans


async def _ask(broker: TestBroker, team_id: str, **headers: Any) -> dict[str, Any]:
    """Ask with a secret, and return the headers of the reply."""
    body = {"run_id": "r1", "session_id": "s1", "team_id": team_id, "input": SECRET}
    await broker.publish(body, message_id="m1", correlation_id="c1", headers=headers)
    return dict((await broker.reply_message("r1")).headers)


async def test_a_trace_goes_through_each_part_of_a_turn_and_on_with_its_reply(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, priced):
        replied = await _ask(broker, "priced", traceparent=TRACEPARENT, tracestate="vendor=1")
        send = await spans.one("send")
    queue = f"{settings.prefix}.requests.{int(slot('s1'), 16) % settings.partitions}"
    by_name = {one.name: one for one in spans.ended}
    process, invoke = by_name[f"process {queue}"], by_name["invoke_agent priced"]
    assert {name: parent_of(one) for name, one in by_name.items()} == {
        f"process {queue}": CALLER,
        "wait": trace_of(process)[1],
        "claim": trace_of(process)[1],
        "invoke_agent priced": trace_of(process)[1],
        "step price": trace_of(invoke)[1],
        "commit": trace_of(process)[1],
        f"send {settings.prefix}.results": trace_of(process)[1],
    }
    assert {trace_of(one)[0] for one in spans.ended} == {TRACE_ID}
    assert replied == {"traceparent": f"00-{TRACE_ID}-{trace_of(send)[1]}-01", "tracestate": "vendor=1"}
    assert (process.kind, invoke.kind, send.kind) == (SpanKind.CONSUMER, SpanKind.INTERNAL, SpanKind.PRODUCER)
    assert all(one.status.status_code is StatusCode.UNSET for one in spans.ended)


async def test_spans_are_described_by_the_semantic_conventions(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, priced):
        await _ask(broker, "priced", traceparent=TRACEPARENT)
        send = await spans.one("send")
    process, invoke, step = await spans.one("process"), await spans.one("invoke_agent"), await spans.one("step")
    requests, key = f"{settings.prefix}.requests", slot("s1")
    queue = f"{requests}.{int(key, 16) % settings.partitions}"
    assert _of(process, "messaging.", "teamturn.run", "teamturn.status", "teamturn.turn", "gen_ai.") == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"{requests}:{key}:{queue}",
        "messaging.destination.template": queue,
        "messaging.rabbitmq.destination.routing_key": key,
        "messaging.rabbitmq.message.delivery_tag": 1,
        "messaging.message.id": "m1",
        "messaging.message.conversation_id": "c1",
        "messaging.message.body.size": 84,
        "gen_ai.conversation.id": "s1",
        "teamturn.run.id": "r1",
        "teamturn.status": "COMPLETED",
        "teamturn.turn": 1,
    }
    assert _of(invoke, "gen_ai.", "teamturn.") == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": "priced",
        "gen_ai.agent.name": "priced",
        "gen_ai.conversation.id": "s1",
        "gen_ai.aggregated_usage.input_tokens": 0,
        "gen_ai.aggregated_usage.output_tokens": 0,
        "teamturn.run.id": "r1",
        "teamturn.target": "team.priced",
        "teamturn.attempt": 1,
        "teamturn.status": "COMPLETED",
    }
    assert _of(step, "") == {"teamturn.step.key": "price#1"}
    assert _of(send, "messaging.destination", "messaging.message.id", "messaging.rabbitmq") == {
        "messaging.destination.name": f"{settings.prefix}.results:team.priced",
        "messaging.destination.template": f"{settings.prefix}.results",
        "messaging.message.id": "r1",
        "messaging.rabbitmq.destination.routing_key": "team.priced",
    }


def _of(span: ReadableSpan, *beginnings: str) -> dict[str, Any]:
    return {name: value for name, value in (span.attributes or {}).items() if name.startswith(beginnings)}


async def test_a_failed_turn_has_its_code_in_its_spans_and_nothing_of_the_conversation(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, broken):
        await _ask(broker, "broken", traceparent=TRACEPARENT)
        await spans.one("send")
    for one in (await spans.one("process"), await spans.one("invoke_agent")):
        assert (one.status.status_code, one.status.description) == (StatusCode.ERROR, "executor_failed")
        assert _of(one, "error.type") == {"error.type": "executor_failed"}
    assert SECRET not in spans.text()


async def test_a_request_without_a_trace_begins_one(settings: Settings, broker: TestBroker, spans: Spans) -> None:
    async with worker_of(settings, echo):
        replied = await _ask(broker, "echo")
        process = await spans.one("process")
    assert process.parent is None
    assert trace_of(process)[0] in replied["traceparent"]


async def test_a_trace_that_is_not_sampled_is_passed_on_and_makes_no_spans(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, echo):
        replied = await _ask(broker, "echo", traceparent=TRACEPARENT.removesuffix("1") + "0")
    assert replied["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert replied["traceparent"].endswith("-00")
    assert spans.ended == []


async def test_without_an_sdk_a_trace_is_passed_on_as_it_came(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        replied = await _ask(broker, "echo", traceparent=TRACEPARENT, tracestate="vendor=1", baggage="secret=1")
    assert replied == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


async def test_a_reply_that_is_sent_again_has_the_same_bytes_and_the_trace_of_who_asked_again(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, echo):
        body = {"run_id": "r1", "session_id": "s1", "team_id": "echo", "input": "hi"}
        other = "1" * 32
        for trace_id in (TRACE_ID, other):
            await broker.publish(body, headers={"traceparent": f"00-{trace_id}-{CALLER}-01"})
        await broker.consume_results()
        await eventually(lambda: len(broker.replies) == 2)
        await eventually(lambda: len([name for name in spans.names if name.startswith("send")]) == 2)
    first, second = broker.replies
    assert first.body == second.body
    assert [str(one.headers["traceparent"])[3:35] for one in (first, second)] == [TRACE_ID, other]
    again = [one for one in spans.ended if trace_of(one)[0] == other]
    assert not [one for one in again if one.name.startswith("invoke_agent")]
    assert [one.attributes["teamturn.replayed"] for one in again if one.attributes and "process" in one.name] == [True]


async def test_a_turn_whose_delivery_was_given_away_says_so_and_that_its_reply_was_not_sent(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor) as worker:
        await broker.ask("s1", team_id="gate")
        await eventually(lambda: bool(gate.started))
        draining = asyncio.create_task(worker.drain())
        await eventually(lambda: not worker.consumers.consuming)
        gate.open.set()
        await draining
        send, process = await spans.one("send"), await spans.one("process")
    assert [_of(one, "teamturn.given") for one in (process, send)] == [{"teamturn.given_away": True}] * 2
    assert _of(process, "teamturn.status") == {"teamturn.status": "COMPLETED"}
    assert await broker.depth("results") == 0


async def test_requests_that_joined_a_turn_say_whose_it_was(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        await broker.ask("s1", "first", team_id="gate")
        await eventually(lambda: bool(gate.started))
        second, third = [await broker.ask("s1", name, team_id="gate", on_busy="coalesce") for name in ("2nd", "3rd")]
        gate.open.set()
        await broker.replies_of([second, third])
        await eventually(lambda: len([name for name in spans.names if name.startswith("process")]) == 3)
    said = [(_of(one, "teamturn.run"), _of(one, "teamturn.answered")) for one in spans.ended if "process" in one.name]
    assert ({"teamturn.run.id": third}, {"teamturn.answered_by": second}) in said


async def test_a_request_that_is_refused_at_once_for_a_busy_session_has_its_span_and_its_reply_the_trace(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        await broker.ask("s1", "first", team_id="gate")
        await eventually(lambda: bool(gate.started))
        body = {"run_id": "r2", "session_id": "s1", "team_id": "gate", "input": SECRET, "on_busy": "reject"}
        await broker.publish(body, headers={"traceparent": TRACEPARENT})
        replied = (await broker.reply_message("r2")).headers
        process, send = await spans.one("process"), await spans.one("send")
        gate.open.set()
        await eventually(lambda: len([name for name in spans.names if name.startswith("send")]) == 2)
    assert (parent_of(process), process.status.description) == (CALLER, "session_busy")
    assert parent_of(send) == trace_of(process)[1]
    assert replied["traceparent"] == f"00-{TRACE_ID}-{trace_of(send)[1]}-01"
    assert len([name for name in spans.names if name.startswith("process")]) == 2


async def test_what_is_no_request_has_a_span_that_says_why_and_its_dead_letter_keeps_the_trace(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with worker_of(settings, echo):
        await broker.publish(SECRET.encode(), routing_key="00", headers={"traceparent": TRACEPARENT})
        dead = await broker.dead_letter()
        process = await spans.one("process")
    assert dead.headers["traceparent"] == TRACEPARENT
    assert (parent_of(process), process.status.description) == (CALLER, "malformed_request")
    assert SECRET not in spans.text()


@pytest.mark.parametrize("content", [False, True])
async def test_models_and_tools_have_spans_and_what_is_said_is_in_them_if_asked_for(
    settings: Settings, broker: TestBroker, spans: Spans, *, content: bool
) -> None:
    async def look_up(what: str) -> str:
        return f"{what}: {SECRET}-result"

    async def fails(what: str) -> str:
        raise ValueError(f"{SECRET}-error of {what}")

    calls = [ToolCallPart("look_up", {"what": f"{SECRET}-argument"}), ToolCallPart("fails", {"what": "x"})]
    member = Agent(responses(text(f"{SECRET}-said")).model, name="asker", deps_type=Turn)
    leader = responses(ModelResponse(parts=[TextPart(f"{SECRET}-thought"), *calls[:1]]), text(SECRET))
    wrong = responses(ModelResponse(parts=calls[1:]))
    team = Team("t1", leader.model, members=[member], tools=[look_up], instructions=f"{SECRET}-instructions")
    failing = Team("t2", wrong.model, tools=[fails])
    async with worker_of(settings.model_copy(update={"trace_content": content}), team, failing):
        await _ask(broker, "t1", traceparent=TRACEPARENT)
        await broker.ask("s2", SECRET, team_id="t2", run_id="r2")
        await broker.reply("r2")
        await eventually(lambda: len([name for name in spans.names if name.startswith("send")]) == 2)
    mine = {one.name: one for one in spans.ended if trace_of(one)[0] == TRACE_ID}
    chat, tool = mine["chat told"], mine["execute_tool look_up"]
    assert parent_of(mine["step tool:look_up"]) == trace_of(tool)[1]
    assert parent_of(mine["step model.request"]) in {trace_of(one)[1] for one in spans.ended if one.name == chat.name}
    assert {one.attributes["gen_ai.conversation.id"] for one in (chat, tool) if one.attributes} == {"s1"}
    assert (SECRET in spans.text()) is content


async def test_a_client_s_requests_carry_the_trace_of_whoever_asks(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    async with (
        worker_of(settings, echo),
        RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client,
    ):
        with spans.provider.get_tracer("the producer").start_as_current_span("question") as question:
            await client.run(RunRequest(run_id="r1", session_id="s1", team_id="echo", input="hi"))
            await client.submit(RunRequest(run_id="r2", session_id="s2", team_id="echo", input="hi"), to_results=True)
        await broker.reply("r2")
        await client.run(RunRequest(run_id="r3", session_id="s3", team_id="echo", input="hi"))
        await eventually(lambda: len([name for name in spans.names if name.startswith("process")]) == 3)
    sends = [one for one in spans.ended if one.name == f"send {settings.prefix}.requests"]
    asking = f"{question.get_span_context().span_id:016x}"
    assert [parent_of(one) for one in sends] == [asking, asking]
    parents = {parent_of(one) for one in spans.ended if one.name.startswith("process")}
    assert parents == {*(trace_of(one)[1] for one in sends), None}


async def test_a_worker_uses_the_sdk_that_its_teams_module_sets_up_and_logs_the_trace(
    settings: Settings, broker: TestBroker, tmp_path: Path
) -> None:
    told = tmp_path / "spans"
    async with worker_on(settings, teams="traced_teams:echo", TEST_SPANS=str(told)) as worker:
        await worker.consuming()
        replied = await _ask(broker, "echo", traceparent=TRACEPARENT)
        await eventually(lambda: f"send {settings.prefix}.results" in told.read_text().splitlines())
        (finished,) = worker.events("turn_finished")
    assert replied["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert finished["trace_id"] == TRACE_ID
    assert len(finished["span_id"]) == 16


async def test_a_reply_to_its_address_has_a_span_without_the_address_in_its_name(
    settings: Settings, broker: TestBroker, spans: Spans
) -> None:
    queue = await broker.channel.declare_queue(exclusive=True)
    async with worker_of(settings, echo):
        await broker.ask("s1")
        body = {"run_id": "r1", "session_id": "s1", "team_id": "echo", "input": "hi"}
        await broker.publish(body, reply_to=queue.name)
        await eventually(lambda: "send" in spans.names)
    send = next(one for one in spans.ended if one.name == "send")
    assert _of(send, "messaging.destination") == {
        "messaging.destination.name": queue.name,
        "messaging.destination.anonymous": True,
        "messaging.destination.temporary": True,
    }
