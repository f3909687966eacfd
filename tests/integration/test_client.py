"""RunClient: over lost connections, with bounds, and with errors that say what to do."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import textwrap
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest
from pydantic import JsonValue

from schemas.events import RunEvent, event_key
from schemas.requests import RunRequest
from tests.support.broker import TestBroker, slot
from tests.support.fleet import Gate, echo
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of, run_python, worker_of
from worker.broker import connected
from worker.client import RunClient, link, submitted, watch
from worker.client.pending import PendingRun
from worker.client.submitted import SubmittedRuns
from worker.errors import ClientClosed, ClientError, ClientTimedOut, NoRoute, PublishNacked, UnknownRun
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.intake.topology import Topology, apply
from worker.settings import Settings

REPLY = json.dumps(
    {"run_id": "r", "session_id": "s", "session_type": "team", "status": "COMPLETED"}
    | {"created_at": 0, "completed_at": 0}
).encode()


def client_of(settings: Settings, line: Proxy | None = None, **more: Any) -> RunClient:
    url = settings.amqp_url.get_secret_value() if line is None else line.url
    return RunClient(url, prefix=settings.prefix, **more)


def asked(team_id: str, run_id: str = "r1", text: str = "hello") -> RunRequest:
    return RunRequest(run_id=run_id, session_id=f"s-{run_id}", team_id=team_id, input=text)


@pytest.fixture
async def line(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.amqp_url.get_secret_value()) as line:
        yield line


async def _is_stored(database: asyncpg.Connection, run_id: str) -> bool:
    return bool(await database.fetchval("select count(*) from ai.receipts where run_id = $1", run_id))


# --- lost connections ---


async def test_a_run_whose_connection_is_cut_gets_its_reply(settings: Settings, line: Proxy) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings, line) as client:
        answer = asyncio.create_task(client.run(asked("gate")))
        await eventually(lambda: gate.started == ["r1"])
        line.cut()
        gate.open.set()
        reply = await answer
    assert (reply.content, reply.turn, reply.attempt) == ("hello", 1, 1)
    assert gate.started == ["r1"]


async def test_a_run_that_ends_while_the_client_is_away_gets_its_stored_reply(
    settings: Settings, line: Proxy, database: asyncpg.Connection
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings, line) as client:
        answer = asyncio.create_task(client.run(asked("gate")))
        await eventually(lambda: gate.started == ["r1"])
        line.is_down = True
        line.cut()
        gate.open.set()
        await eventually(lambda: _is_stored(database, "r1"))
        await eventually(lambda: line.refused >= 2)
        line.is_down = False
        reply = await answer
    assert (reply.content, reply.turn, reply.attempt) == ("hello", 1, 1)
    assert gate.started == ["r1"]


async def test_what_is_asked_while_the_connection_is_away_is_published_when_it_is_back(
    settings: Settings, line: Proxy
) -> None:
    async with worker_of(settings, echo), client_of(settings, line) as client:
        line.is_down = True
        line.cut()
        answers = [asyncio.create_task(client.run(asked("echo", f"r{number}"))) for number in range(20)]
        await eventually(lambda: line.refused >= 2)
        line.is_down = False
        replies = await asyncio.gather(*answers)
    assert [reply.run_id for reply in replies] == [f"r{number}" for number in range(20)]


async def test_under_load_cuts_cost_no_answer_and_repeat_no_turn(settings: Settings, line: Proxy) -> None:
    taken: list[str] = []

    @executor("counted")
    async def counted(turn: Turn) -> JsonValue:
        taken.append(turn.run_id)
        return turn.input

    async with worker_of(settings, counted), client_of(settings, line, max_unanswered=20) as client:
        requests = [asked("counted", f"r{number}", str(number)) for number in range(100)]
        answers = [asyncio.create_task(client.run(request)) for request in requests]
        for cut_behind in range(25, 100, 25):
            await eventually(lambda: sum(one.done() for one in answers) >= cut_behind)  # noqa: B023
            line.cut()
        replies = await asyncio.gather(*answers)
    assert [reply.content for reply in replies] == [str(number) for number in range(100)]
    assert len(taken) == len(set(taken)) == 100


async def test_a_cancellation_goes_over_a_lost_connection(settings: Settings, line: Proxy) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings, line) as client:
        answer = asyncio.create_task(client.run(asked("gate")))
        await eventually(lambda: gate.started == ["r1"])
        line.is_down = True
        line.cut()
        cancelled = asyncio.create_task(client.cancel("r1", session_id="s-r1"))
        await eventually(lambda: line.refused >= 2)
        line.is_down = False
        await cancelled
        reply = await answer
    assert reply.status.value == "CANCELLED"


async def test_a_channel_that_is_closed_costs_nobody_an_answer(settings: Settings, line: Proxy) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings, line) as client:
        answer = asyncio.create_task(client.run(asked("gate")))
        await eventually(lambda: gate.started == ["r1"])
        link = await client._reconnector.link()
        await link._opened.close()
        gate.open.set()
        reply = await answer
    assert reply.content == "hello"


async def test_a_time_out_while_the_connection_is_away_says_so_and_no_password(settings: Settings, line: Proxy) -> None:
    async with worker_of(settings, echo), client_of(settings, line) as client:
        line.is_down = True
        line.cut()
        await eventually(lambda: "can't be reached" in (client._reconnector.trouble or ""))
        with pytest.raises(ClientTimedOut) as raised:
            await client.run(asked("echo"), timeout_seconds=0.3)
    assert str(raised.value).startswith("no reply to run 'r1' within 0.3 s: RabbitMQ can't be reached at 127.0.0.1:")
    assert "guest" not in str(raised.value)
    assert isinstance(raised.value, TimeoutError)


# --- submit and result ---


async def test_what_was_submitted_can_be_asked_for_later_and_again(settings: Settings) -> None:
    async with worker_of(settings, echo), client_of(settings) as client:
        run_ids = [await client.submit(asked("echo", f"r{number}", f"text {number}")) for number in range(5)]
        replies = [await client.result(run_id) for run_id in reversed(run_ids)]
        again = await client.result("r0")
    assert run_ids == [f"r{number}" for number in range(5)]
    assert [reply.content for reply in replies] == [f"text {number}" for number in (4, 3, 2, 1, 0)]
    assert again == replies[-1]


async def test_another_client_gets_the_reply_of_what_an_earlier_one_submitted(settings: Settings) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        async with client_of(settings) as first:
            await first.submit(asked("gate", "done"))
            await first.submit(asked("gate", "running"))
            await eventually(lambda: sorted(gate.started) == ["done", "running"])
        async with client_of(settings) as second:
            waiting = asyncio.create_task(second.result(asked("gate", "running")))
            gate.open.set()
            running = await waiting
        async with client_of(settings) as third:
            done = await third.result(asked("gate", "done"))
            same = await third.result(asked("gate", "running"))
    assert (done.run_id, done.turn, running.run_id, running.turn) == ("done", 1, "running", 1)
    assert same == running
    assert sorted(gate.started) == ["done", "running"], "neither is executed twice"


async def test_a_run_that_was_not_submitted_here_is_asked_for_by_its_request(settings: Settings) -> None:
    async with worker_of(settings, echo), client_of(settings) as client:
        with pytest.raises(UnknownRun, match="'r1': give result\\(\\) the request itself"):
            await client.result("r1")


async def test_with_to_results_the_reply_goes_to_the_results(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo), client_of(settings, max_unanswered=1) as client:
        run_ids = [await client.submit(asked("echo", f"r{number}"), to_results=True) for number in range(3)]
        replies = [await broker.reply(run_id) for run_id in run_ids]
    assert [reply["content"] for reply in replies] == ["hello"] * 3


async def test_of_replies_that_nobody_asks_for_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "MOST_KEPT", 2)
    runs = SubmittedRuns()
    pending = [PendingRun(asked("echo", f"r{number}")) for number in range(4)]
    for one in pending:
        runs.add(one)
    for one in pending[:3]:
        one.answered(REPLY)
    await eventually(lambda: runs.find("r0") is None)
    assert [runs.find(f"r{number}") for number in range(1, 4)] == pending[1:], "and whatever is unanswered"


# --- back-pressure ---


async def test_with_enough_unanswered_the_next_request_waits(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor, echo), client_of(settings, max_unanswered=2) as client:
        await client.submit(asked("gate", "r1"))
        await client.submit(asked("gate", "r2"))
        third = asyncio.create_task(client.submit(asked("gate", "r3")))
        await eventually(lambda: sorted(gate.started) == ["r1", "r2"])
        # Published after it, and answered: it would have been started by then.
        await broker.reply(await broker.ask("s-r3", team_id="echo"))
        assert sorted(gate.started) == ["r1", "r2"]
        assert not third.done()
        gate.open.set()
        await third
        assert (await client.result("r3")).status.value == "REJECTED", "the session began with another target"


async def test_whoever_gives_up_makes_room(settings: Settings) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor, echo), client_of(settings, max_unanswered=1) as client:
        with pytest.raises(ClientTimedOut, match="is a worker running"):
            await client.run(asked("gate", "r1"), timeout_seconds=0.2)
        given_up = asyncio.create_task(client.run(asked("gate", "r2")))
        await eventually(lambda: "r2" in gate.started)
        given_up.cancel()
        assert (await client.run(asked("echo", "r3"))).content == "hello"
        gate.open.set()


async def test_many_at_once_are_all_answered(settings: Settings) -> None:
    async with worker_of(settings, echo), client_of(settings, max_unanswered=50) as client:
        requests = [asked("echo", f"r{number}", str(number)) for number in range(400)]
        replies = await asyncio.gather(*(client.run(request) for request in requests))
    assert [reply.content for reply in replies] == [str(number) for number in range(400)]


# --- errors ---


async def test_before_there_is_a_topology_the_client_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(
        NoRoute, match=r"has no exchange '.*\.requests': start a worker, or run teamturn topology apply"
    ):
        async with client_of(settings):
            pass


async def _declared(settings: Settings) -> None:
    async with connected(settings.amqp_url, name="test") as connection:
        await apply(connection.amqp, Topology(prefix=settings.prefix, partitions=settings.partitions))


@pytest.mark.parametrize("to_results", [False, True])
async def test_without_queues_the_client_says_what_to_do(
    settings: Settings, broker: TestBroker, *, to_results: bool
) -> None:
    await _declared(settings)
    for name in ("unrouted", *(f"requests.{number}" for number in range(settings.partitions))):
        await broker.channel.queue_delete(f"{settings.prefix}.{name}")
    async with client_of(settings) as client:
        with pytest.raises(NoRoute, match=r"no queue takes .*: start a worker, or run teamturn topology apply"):
            await client.submit(asked("echo"), to_results=to_results)
        with pytest.raises(NoRoute, match="no queue takes"):
            await client.run(asked("echo"))
        with pytest.raises(UnknownRun):
            await client.result("r1")


async def test_an_exchange_that_is_gone_is_named_and_costs_nobody_else_an_answer(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings) as client:
        answer = asyncio.create_task(client.run(asked("gate")))
        await eventually(lambda: gate.started == ["r1"])
        await broker.channel.exchange_delete(f"{settings.prefix}.control")
        with pytest.raises(NoRoute, match=r"no exchange '.*\.control'"):
            await client.cancel("r1", session_id="s-r1")
        gate.open.set()
        assert (await answer).content == "hello"


async def test_a_full_queue_that_goes_on_refusing_is_said_to(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_REFUSED_SECONDS", 0.2)
    exchange = await broker.channel.declare_exchange(f"{settings.prefix}.requests", "direct", durable=True)
    queue = await broker.channel.declare_queue(
        f"{settings.prefix}.requests.0", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await queue.bind(exchange, slot("s-r1"))
    async with client_of(settings) as client:
        await client.submit(asked("echo"), to_results=True)
        with pytest.raises(PublishNacked, match=r"basic\.nack"):
            await client.run(asked("echo"))


async def test_a_client_that_is_closed_ends_who_waits(settings: Settings) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor):
        async with client_of(settings, max_unanswered=1) as client:
            answer = asyncio.create_task(client.run(asked("gate", "r1")))
            await eventually(lambda: gate.started == ["r1"])
            behind = asyncio.create_task(client.run(asked("gate", "r2")))
        for waiting in (answer, behind):
            with pytest.raises(ClientClosed):
                await waiting
        gate.open.set()
    with pytest.raises(ClientClosed, match="async with RunClient"):
        await client.run(asked("gate", "r3"))


async def test_a_client_that_is_closed_while_its_connection_is_away_ends_who_waits(
    settings: Settings, line: Proxy
) -> None:
    await _declared(settings)
    async with client_of(settings, line) as client:
        line.is_down = True
        line.cut()
        waiting = [
            asyncio.create_task(client.run(asked("echo"))),
            asyncio.create_task(client.submit(asked("echo"), to_results=True)),
            asyncio.create_task(client.cancel("r1")),
        ]
        await eventually(lambda: line.refused >= 2)
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in ended] == [ClientClosed] * 3
    assert issubclass(ClientClosed, ClientError)


# --- streams ---


class Teller:
    """An executor that tells numbers, and waits for the test behind the first of them."""

    def __init__(self, numbers: int = 2) -> None:
        self.told = asyncio.Event()
        self.open = asyncio.Event()

        @executor("teller")
        async def teller(turn: Turn) -> JsonValue:
            await turn.emit(1)
            self.told.set()
            await self.open.wait()
            for number in range(2, numbers + 1):
                await turn.emit(number)
            return "done"

        self.executor = teller


def _told(events: list[RunEvent]) -> list[tuple[int, str, Any]]:
    return [(one.number, one.type, one.data if one.type == "custom" else None) for one in events]


async def _subscribed_again(client: RunClient, before: object) -> None:
    """Wait until the client's one stream has a subscription that is not the one before."""

    def has() -> bool:
        (pending,) = client._pending.values()
        assert pending.watch is not None
        return pending.watch._channel is not before

    await eventually(has)


async def test_a_stream_goes_on_over_a_cut_with_no_event_twice(settings: Settings, line: Proxy) -> None:
    teller = Teller()
    events: list[RunEvent] = []
    async with worker_of(settings, teller.executor), client_of(settings, line) as client:
        async for event in client.stream(asked("teller")):
            events.append(event)
            if event.type == "custom" and event.data == 1:
                (pending,) = client._pending.values()
                assert pending.watch is not None
                before = pending.watch._channel
                line.cut()
                await _subscribed_again(client, before)
                teller.open.set()
    assert _told(events) == [(1, "run_started", None), (2, "custom", 1), (3, "custom", 2), (4, "run_finished", None)]
    assert events[-1].type == "run_finished"
    assert events[-1].reply.content == "done"


async def test_a_stream_whose_events_were_lost_ends_with_the_whole_reply(
    settings: Settings, line: Proxy, database: asyncpg.Connection
) -> None:
    teller = Teller(numbers=5)
    events: list[RunEvent] = []
    async with worker_of(settings, teller.executor), client_of(settings, line) as client:
        async for event in client.stream(asked("teller")):
            events.append(event)
            if event.type == "custom":
                line.is_down = True
                line.cut()
                teller.open.set()
                await eventually(lambda: _is_stored(database, "r1"))
                await eventually(lambda: line.refused >= 2)
                line.is_down = False
    assert [event.type for event in events] == ["run_started", "custom", "run_finished"]
    assert sorted(events, key=lambda event: (event.attempt, event.number)) == events
    assert events[-1].type == "run_finished"
    assert (events[-1].reply.content, events[-1].reply.turn) == ("done", 1)


async def test_a_stream_leaves_out_what_was_told_before(settings: Settings, broker: TestBroker) -> None:
    """Events come twice from a worker that lost its connection, and late from one that lost the run."""
    gate = Gate()
    request = asked("gate")
    address = {"run_id": "r1", "session_id": "s-r1", "session_type": "team", "target_id": "gate"}
    told: list[tuple[int, int]] = []
    async with worker_of(settings, gate.executor), client_of(settings) as client:
        async for event in client.stream(request):
            told.append((event.attempt, event.number))
            if event.type == "run_started":
                for attempt, number in ((1, 2), (1, 2), (1, 1), (2, 1), (1, 3), (2, 2)):
                    await broker.publish(
                        address | {"type": "custom", "attempt": attempt, "number": number, "time": 0},
                        exchange=f"{settings.prefix}.events",
                        routing_key=event_key(request.target, request.session_id, request.run_id),
                    )
            elif (event.attempt, event.number) == (2, 2):
                gate.open.set()
    assert told == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)], "and the last one is behind all of them"


async def test_of_events_that_nobody_reads_a_bounded_number_is_kept_and_the_reply_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "MOST_WAITING", 3)
    pending = PendingRun(asked("echo"), watch.Watch(asked("echo"), "events", "#"))
    assert pending.watch is not None
    address = {"run_id": "r1", "session_id": "s-r1", "session_type": "team", "target_id": "echo"}
    for number in range(1, 21):
        event = address | {"type": "custom", "attempt": 1, "number": number, "time": 0}
        await pending.watch._received(cast(Any, SimpleNamespace(body=json.dumps(event).encode())))
    pending.answered(REPLY)
    events = [event async for event in pending.watch.events(pending.reply)]
    assert [(event.type, event.number) for event in events[:-1]] == [("custom", 1), ("custom", 2), ("custom", 3)]
    assert events[-1].type == "run_finished"
    assert events[-1].reply == pending.reply.result()


async def test_a_stream_of_which_no_more_is_wanted_leaves_nothing_behind(settings: Settings) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor, echo), client_of(settings, max_unanswered=1) as client:
        stream = client.stream(asked("gate"))
        async for event in stream:
            assert event.type == "run_started"
            break
        await stream.aclose()
        assert not client._pending
        assert (await client.run(asked("echo", "r2"))).content == "hello", "its place is free"
        gate.open.set()


async def test_a_stream_ends_with_its_time_limit(settings: Settings) -> None:
    gate = Gate()
    async with worker_of(settings, gate.executor), client_of(settings) as client:
        with pytest.raises(ClientTimedOut, match="no reply to run 'r1' within"):
            async for event in client.stream(asked("gate"), timeout_seconds=0.5):
                assert event.type == "run_started"
        gate.open.set()


# --- documented ---


def _examples(documented: object) -> str:
    text, _, _ = (inspect.getdoc(documented) or "").partition("\nArgs:")
    return textwrap.dedent("".join(re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)))


@executor("capital")
async def capital(_: Turn) -> str:
    return "In France."


async def test_the_example_in_the_documentation_runs(settings: Settings) -> None:
    url = settings.amqp_url.get_secret_value()
    program = (
        _examples(RunClient)
        .replace('guest:guest@localhost:5672/"', '"')
        .replace('"amqp://"', f'"{url}", prefix="{settings.prefix}"')
    )
    assert settings.prefix in program
    async with worker_of(settings, capital):
        code, out, err = await run_python("-c", program, environment=environment_of(settings), cwd=ROOT, seconds=30)
    assert (code, out, err) == (0, "COMPLETED In France.\n", "")


async def test_the_methods_examples_run(settings: Settings) -> None:
    methods = (RunClient.run, RunClient.submit, RunClient.result, RunClient.stream, RunClient.cancel)
    body = textwrap.indent("\n".join(map(_examples, methods)), "    ")
    made: dict[str, Any] = {"RunRequest": RunRequest}
    exec(f"async def example(client, request):\n{body}", made)  # noqa: S102 - it is of this project
    async with worker_of(settings, capital), client_of(settings) as client:
        await made["example"](client, asked("capital", "r-2"))
