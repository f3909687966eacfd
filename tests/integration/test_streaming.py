"""Watched runs: events as they happen, in their order, for whoever has bound a queue; and at no cost for the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import asyncpg
import pytest
from pydantic import SecretStr
from pydantic_ai import Agent, ModelRetry, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from schemas.events import RUN_EVENT, RunEvent, event_key, key_part
from schemas.ids import SessionType, Target
from schemas.requests import RunRequest
from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.client import RunClient
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.replies.events import LARGEST_EVENT_BYTES
from worker.settings import Settings
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.turns import starts


class Watcher:
    """A queue of the test's own, bound to events."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    async def consume(self, broker: TestBroker, *keys: str) -> None:
        queue = await broker.channel.declare_queue(exclusive=True)
        for key in keys:
            await queue.bind(f"{broker.prefix}.events", key)

        async def received(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            assert message.type == "run.event"
            self.events.append(RUN_EVENT.validate_json(message.body))
            await message.ack()

        await queue.consume(received)

    def of(self, run_id: str) -> list[RunEvent]:
        return [event for event in self.events if event.run_id == run_id]

    async def finished(self, run_id: str) -> list[RunEvent]:
        """Wait for the last event of a run, and return all of it."""
        await eventually(lambda: any(event.type == "run_finished" for event in self.of(run_id)))
        return self.of(run_id)


def _writes(*pieces: str) -> FunctionModel:
    """A model that writes an answer piece by piece."""

    async def stream(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    def whole(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        raise AssertionError("a watched run is streamed")

    return FunctionModel(whole, stream_function=stream, model_name="told")


def _calls_first(tool: str, arguments: str, *pieces: str) -> FunctionModel:
    """A model that calls a tool, and then writes an answer."""

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        if isinstance(messages[-1].parts[-1], ToolReturnPart):
            for piece in pieces:
                yield piece
        else:
            yield {0: DeltaToolCall(name=tool, json_args=arguments, tool_call_id="call-1")}

    return FunctionModel(stream_function=stream, model_name="told")


def _texts(events: list[RunEvent], member_run_id: str | None = None) -> list[str]:
    return [one.text for one in events if one.type == "content_delta" and one.member_run_id == member_run_id]


@pytest.mark.parametrize("journal", [True, False], ids=["journalled", "not journalled"])
async def test_an_answer_is_told_piece_by_piece_and_the_reply_is_the_same(
    settings: Settings, broker: TestBroker, *, journal: bool
) -> None:
    watcher = Watcher()
    team = Team("capital", _writes("The capital ", "is ", "Paris."), journal=journal)
    async with worker_of(settings, team):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="capital", stream=True)
        events = await watcher.finished(run_id)
        reply = await broker.reply(run_id)
    assert [event.type for event in events] == ["run_started", *["content_delta"] * 3, "run_finished"]
    assert _texts(events) == ["The capital ", "is ", "Paris."]
    assert [(event.attempt, event.number) for event in events] == [(1, number) for number in range(1, 6)]
    assert events[-1].type == "run_finished"
    assert events[-1].reply.model_dump(mode="json") == reply
    assert reply["content"] == "The capital is Paris."


@pytest.mark.parametrize("journal", [True, False], ids=["journalled", "not journalled"])
async def test_tools_members_and_the_state_are_told(settings: Settings, broker: TestBroker, *, journal: bool) -> None:
    def remember(context: RunContext[Turn], what: str) -> str:
        context.deps.session_state["seen"] = what
        return "remembered"

    clerk = Agent(
        _calls_first("remember", '{"what": "tea"}', "tea ", "it is"), name="clerk", deps_type=Turn, tools=[remember]
    )
    leader = _calls_first("delegate_task", '{"member_id": "clerk", "task": "serve"}', "Here ", "you are")
    watcher = Watcher()
    async with worker_of(settings, Team("shop", leader, members=[clerk], journal=journal)):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="shop", stream=True)
        events = await watcher.finished(run_id)
    types = [event.type for event in events if event.type != "content_delta"]
    changed = ["state_changed"] if journal else []
    assert sorted(types) == sorted(
        [
            *("run_started", "member_started", "tool_call_started", *changed, "tool_call_finished"),
            *("member_finished", "run_finished"),
        ]
    )
    (begun,) = [event for event in events if event.type == "member_started"]
    (called,) = [event for event in events if event.type == "tool_call_started"]
    assert (begun.member_id, begun.parent_run_id) == ("clerk", run_id)
    assert (called.tool, called.arguments, called.member_run_id) == ("remember", {"what": "tea"}, begun.member_run_id)
    assert _texts(events) == ["Here ", "you are"]
    assert _texts(events, begun.member_run_id) == ["tea ", "it is"]
    if journal:
        (change,) = [event for event in events if event.type == "state_changed"]
        assert change.changed == {"seen": "tea"}
    assert [event.number for event in events] == list(range(1, len(events) + 1))


async def test_what_an_executor_emits_is_told(settings: Settings, broker: TestBroker) -> None:
    @executor("teller")
    async def teller(turn: Turn) -> str:
        await turn.emit({"progress": 0.5})
        return "done"

    watcher = Watcher()
    async with worker_of(settings, teller):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="teller", stream=True)
        events = await watcher.finished(run_id)
    assert [event.data for event in events if event.type == "custom"] == [{"progress": 0.5}]


async def test_a_run_that_is_not_watched_tells_nothing_and_is_not_streamed(
    settings: Settings, broker: TestBroker
) -> None:
    asked: list[str] = []

    async def stream(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        asked.append("stream")
        yield "streamed"

    def answer(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        asked.append("whole")
        return ModelResponse(parts=[TextPart("whole")])

    watcher = Watcher()
    team = Team("capital", FunctionModel(answer, stream_function=stream))
    async with worker_of(settings, team):
        await watcher.consume(broker, "#")
        await broker.reply(await broker.ask("s1", team_id="capital"))
        last = await broker.ask("s1", team_id="capital", stream=True)
        await watcher.finished(last)
    assert asked == ["whole", "stream"]
    assert {event.run_id for event in watcher.events} == {last}


@pytest.mark.parametrize(
    ("key", "seen"),
    [
        ("#", {"r1", "r2", "r.3"}),
        ("team.echo.*.*", {"r1", "r2", "r.3"}),
        ("agent.#", set()),
        ("*.*.s1.*", {"r1"}),
        ("*.*.*.r2", {"r2"}),
        (f"*.*.*.{key_part('r.3')}", {"r.3"}),
    ],
)
async def test_a_run_a_session_a_team_or_everything_is_one_binding(
    settings: Settings, broker: TestBroker, key: str, seen: set[str]
) -> None:
    everything, watcher = Watcher(), Watcher()
    async with worker_of(settings, echo):
        await watcher.consume(broker, key)
        await everything.consume(broker, "#")
        for run_id, session_id in (("r1", "s1"), ("r2", "s2"), ("r.3", "s.3")):
            await broker.ask(session_id, run_id=run_id, stream=True)
            await everything.finished(run_id)
        # The exchange gives a message to all of its queues at once; the slower consumer is waited for.
        await eventually(lambda: {event.run_id for event in watcher.events if event.type == "run_finished"} == seen)
    assert {event.run_id for event in watcher.events} == seen


async def test_nobody_who_watches_costs_no_turn_its_answer(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        reply = await broker.reply(await broker.ask("s1", stream=True))
    assert reply["status"] == "COMPLETED"


async def test_a_client_s_stream_ends_with_the_reply(settings: Settings) -> None:
    team = Team("capital", _writes("Par", "is"))
    request = RunRequest(run_id="r1", session_id="s1", team_id="capital", input="?")
    async with (
        worker_of(settings, team),
        RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client,
    ):
        events = [event async for event in client.stream(request)]
        again = [event async for event in client.stream(request)]
    assert _texts(events) == ["Par", "is"]
    last, replayed = events[-1], again[-1]
    assert last.type == "run_finished"
    assert replayed.type == "run_finished"
    assert (last.reply.status.value, last.reply.content) == ("COMPLETED", "Paris")
    # It is not executed again: there is the reply, and nothing else to tell.
    assert len(again) == 1
    assert replayed.reply == last.reply


async def test_a_client_s_stream_ends_with_all_of_a_large_reply(settings: Settings) -> None:
    @executor("large")
    async def large(_: Turn) -> str:
        return "x" * (2 * LARGEST_EVENT_BYTES)

    request = RunRequest(run_id="r1", session_id="s1", team_id="large", input="?")
    async with (
        worker_of(settings, large),
        RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix) as client,
    ):
        events = [event async for event in client.stream(request)]
    last = events[-1]
    assert last.type == "run_finished"
    assert last.reply.content == "x" * (2 * LARGEST_EVENT_BYTES)


async def test_events_go_on_when_their_connection_was_lost(settings: Settings, broker: TestBroker) -> None:
    watcher = Watcher()
    async with Proxy(settings.amqp_url.get_secret_value()) as line:
        by_line = settings.model_copy(update={"amqp_url": SecretStr(line.url)})
        async with worker_of(by_line, echo):
            await watcher.consume(broker, "#")
            await watcher.finished(await broker.ask("s1", run_id="before", stream=True))
            line.cut()
            events = await watcher.finished(await broker.ask("s1", run_id="after", stream=True))
    assert [(event.type, event.number) for event in events[-2:]] == [("run_started", 1), ("run_finished", 2)]


def test_keys_are_safe_and_short() -> None:
    long = event_key(Target(type=SessionType.TEAM, id="ü" * 127), "s" * 255, "*.#")
    assert len(long.encode()) <= 255
    assert long.count(".") == 3
    assert not set("*#") & set(long)
    plain = event_key(Target(type=SessionType.AGENT, id="a-1"), "s_1", "0b8d5b9c-6f26-4013-9bbc-9b5090d821e6")
    assert plain == "agent.a-1.s_1.0b8d5b9c-6f26-4013-9bbc-9b5090d821e6"


async def test_a_request_that_is_delivered_again_after_its_end_has_its_end_told_again(
    settings: Settings, broker: TestBroker
) -> None:
    """The worker may have died between the commit and the event."""
    watcher = Watcher()
    async with worker_of(settings, echo):
        await watcher.consume(broker, "#")
        for _ in range(2):
            await broker.ask("s1", run_id="r1", stream=True)
        await eventually(lambda: [event.type for event in watcher.of("r1")].count("run_finished") == 2)
    started, finished, again = watcher.of("r1")
    assert (started.attempt, started.number, finished.attempt, finished.number) == (1, 1, 1, 2)
    assert (again.attempt, again.number) == (2, 1)
    assert finished.type == again.type == "run_finished"
    assert finished.reply == again.reply


async def test_a_refused_request_has_its_end_told_unless_the_session_is_another_s(
    settings: Settings, broker: TestBroker
) -> None:
    watcher = Watcher()
    async with worker_of(settings, echo):
        await watcher.consume(broker, "#")
        await broker.reply(await broker.ask("s1", user_id="u1"))
        for _ in range(2):  # the second time it is a stored reply that is published again
            await broker.ask("s1", user_id="u2", stream=True, run_id="forbidden")
        await eventually(lambda: [one.message_id for one in broker.replies].count("forbidden") == 2)
        await broker.ask("s2", deadline="2020-01-01T00:00:00Z", stream=True, run_id="late")
        (late,) = await watcher.finished("late")
    assert late.type == "run_finished"
    assert (late.attempt, late.number, late.reply.status) == (1, 1, "REJECTED")
    assert watcher.of("forbidden") == []


class Writer:
    """A model that writes two pieces of an answer, and the rest when it is let go on; as a member, it writes alike."""

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.go_on = asyncio.Event()

    @property
    def model(self) -> FunctionModel:
        async def stream(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
            yield "The capital "
            yield "is "
            self.written.set()
            await self.go_on.wait()
            yield "Paris."

        return FunctionModel(stream_function=stream, model_name="told")


async def test_a_cancelled_run_keeps_what_was_written_of_its_answer(settings: Settings, broker: TestBroker) -> None:
    writer, watcher = Writer(), Watcher()
    async with worker_of(settings, Team("capital", writer.model)):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="capital", stream=True)
        await writer.written.wait()
        said = {"type": "cancel", "run_id": run_id, "session_id": "s1"}
        await broker.publish(said, exchange=f"{broker.prefix}.control", routing_key="")
        reply = await broker.reply(run_id)
        events = await watcher.finished(run_id)
    assert (reply["status"], reply["content"]) == ("CANCELLED", "The capital is ")
    assert "".join(_texts(events)) == reply["content"]


async def test_a_cancelled_run_keeps_what_its_members_had_written(settings: Settings, broker: TestBroker) -> None:
    writer = Writer()
    clerk = Agent(writer.model, name="clerk", deps_type=Turn)
    leader = _calls_first("delegate_task", '{"member_id": "clerk", "task": "serve"}', "never")
    async with worker_of(settings, Team("shop", leader, members=[clerk])):
        run_id = await broker.ask("s1", team_id="shop", stream=True)
        await writer.written.wait()
        said = {"type": "cancel", "run_id": run_id, "session_id": "s1"}
        await broker.publish(said, exchange=f"{broker.prefix}.control", routing_key="")
        reply = await broker.reply(run_id)
    assert (reply["status"], reply["content"]) == ("CANCELLED", None)
    assert [(one["status"], one["content"]) for one in reply["member_responses"]] == [("CANCELLED", "The capital is ")]


async def test_a_watched_run_goes_on_elsewhere_and_says_behind_which_step(
    settings: Settings, broker: TestBroker
) -> None:
    """What was recorded is not written again; the answer that was cut off is, as of another attempt."""
    writer, watcher = Writer(), Watcher()
    looked: list[str] = []

    def look() -> str:
        looked.append("tea")
        return "tea"

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        if not isinstance(messages[-1].parts[-1], ToolReturnPart):
            yield "Let me look. "
            yield {1: DeltaToolCall(name="look", json_args="{}", tool_call_id="call-1")}
            return
        yield "It is "
        writer.written.set()
        await writer.go_on.wait()
        yield "tea."

    team = Team("shop", FunctionModel(stream_function=stream, model_name="told"), tools=[look])
    async with worker_of(settings, team):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="shop", stream=True)
        await writer.written.wait()
        # An event that is in flight is lost with its worker.
        await eventually(lambda: _texts(watcher.of(run_id)) == ["Let me look. ", "It is "])
    writer.go_on.set()
    async with worker_of(settings, team):
        events = await watcher.finished(run_id)
    attempts = sorted({event.attempt for event in events})
    assert len(attempts) == 2
    first, second = ([event for event in events if event.attempt == attempt] for attempt in attempts)
    assert _texts(first) == ["Let me look. ", "It is "]
    assert _texts(second) == ["It is ", "tea."]
    begun = second[0]
    assert begun.type == "run_started"
    assert (begun.resumed_behind, begun.number) == ("tool:look@call-1#1", 1)
    assert looked == ["tea"]
    for one in (first, second):
        assert [event.number for event in one] == list(range(1, len(one) + 1))


async def test_an_attempt_whose_worker_is_gone_at_once_has_its_number_and_the_next_one_another(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are ordered by attempt and number: no two of a run may have the same ones."""
    monkeypatch.setattr(starts, "_RECORD_AFTER_SECONDS", 3600.0)
    watcher, gate = Watcher(), Gate()
    async with worker_of(settings, gate.executor):
        await watcher.consume(broker, "#")
        run_id = await broker.ask("s1", team_id="gate", stream=True)
        await eventually(lambda: len(watcher.events) == 1)
    gate.open.set()
    async with worker_of(settings, gate.executor):
        events = await watcher.finished(run_id)
    numbers = [(event.attempt, event.number) for event in events]
    assert sorted(set(numbers)) == numbers
    assert numbers[-1][0] == 2


async def test_a_call_that_fails_is_told_so_also_one_with_arguments_that_can_t_be_read(
    settings: Settings, broker: TestBroker
) -> None:
    tries = ['{"what": "tea', '{"what": "coffee"}', '{"what": "tea"}']

    def look(what: str) -> str:
        if what == "coffee":
            raise ModelRetry("there is none")
        return what

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        asked = sum(isinstance(message, ModelResponse) for message in messages)
        if asked == len(tries):
            yield "tea"
            return
        yield {0: DeltaToolCall(name="look", json_args=tries[asked], tool_call_id=f"call-{asked}")}

    watcher = Watcher()
    agent = Agent(FunctionModel(stream_function=stream), name="shop", tools=[Tool(look, max_retries=5)])
    async with worker_of(settings, SingleAgent(agent)):
        await watcher.consume(broker, "#")
        await broker.publish({"run_id": "r1", "session_id": "s1", "agent_id": "shop", "input": "?", "stream": True})
        events = await watcher.finished("r1")
    calls = [one for one in events if one.type in {"tool_call_started", "tool_call_finished"}]
    assert [one.type for one in calls] == ["tool_call_started", "tool_call_finished"] * 3
    assert [one.failed for one in calls if one.type == "tool_call_finished"] == [True, True, False]
    assert [one.arguments for one in calls if one.type == "tool_call_started"][1:] == [
        {"what": "coffee"},
        {"what": "tea"},
    ]


async def test_a_run_that_is_given_up_has_its_end_told(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    watcher = Watcher()
    async with worker_of(settings, echo):
        await watcher.consume(broker, "#")
        started = "insert into ai.turn_attempts (run_id, attempts, session_id) values ('r1', $1, 's1')"
        await database.execute(started, settings.max_attempts)
        await broker.ask("s1", run_id="r1", stream=True)
        (end,) = await watcher.finished("r1")
    assert end.type == "run_finished"
    assert end.reply.error is not None
    assert end.reply.error.code == "attempts_exhausted"
    assert (end.attempt, end.number) == (settings.max_attempts + 1, 1)
