"""What a worker tells Prometheus, by its real page: each counter moves by what happened, and no other does."""

from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage
from structlog.testing import capture_logs

from tests.support.broker import TestBroker
from tests.support.fleet import Gate, echo
from tests.support.probing import Probe
from tests.support.scrapes import Scrape
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.errors import LaneLost
from worker.executors.function import executor
from worker.executors.turn import Executor, Turn
from worker.fleet.readings import FleetReadings
from worker.operations.health import Health
from worker.operations.probes import served
from worker.sessions.lanes import LaneConnection, Statement
from worker.sessions.statements import COMMIT
from worker.settings import Settings
from worker.team.team import Team
from worker.worker import Worker

Moved = dict[str, float]
OF_ALL = {"teamturn_batch_rows_count", "teamturn_event_loop_lag_seconds_count"}


@dataclass
class Watched:
    """A worker, asked for its metrics as Prometheus asks."""

    worker: Worker
    broker: TestBroker
    port: int
    before: Moved = field(default_factory=dict)

    async def scrape(self) -> Scrape:
        answer = await Probe(self.port).get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Scrape.of(answer.text)

    async def counts(self) -> Moved:
        """All counters, histograms' among them, by `name{value,value}`: the labels by their names."""
        found: Moved = {}
        for family in (await self.scrape()).families:
            for sample in family.samples:
                if sample.name.endswith(("_total", "_count")) and sample.name not in OF_ALL:
                    values = ",".join(sample.labels.values())
                    found[f"{sample.name.removeprefix('teamturn_')}{{{values}}}"] = sample.value
        return found

    async def moved(self) -> Moved:
        """What has moved since this was asked last, once everything is acknowledged and stored."""
        await eventually(lambda: not len(self.worker.mailboxes) and self.worker.consumers.held_seconds == 0)
        now = await self.counts()
        before, self.before = self.before, now
        return {name: value - before.get(name, 0) for name, value in now.items() if value != before.get(name, 0)}


@asynccontextmanager
async def watched(settings: Settings, broker: TestBroker, *executors: Executor) -> AsyncIterator[Watched]:
    async with worker_of(settings, *executors) as worker:
        health = Health()
        health.started(worker.condition, worker.pages)
        async with served(health.pages, 0) as port:
            found = Watched(worker, broker, port)
            await eventually(lambda: worker.condition().consuming)
            await found.moved()
            yield found


def taken(status: str = "COMPLETED", code: str = "none", *, target: str = "team.echo", times: int = 1) -> Moved:
    """What moves with a turn that is taken."""
    counted = {"claim_seconds_count{}", "commit_seconds_count{}", "reply_seconds_count{}", "queue_seconds_count{}"}
    counted |= {f"turn_seconds_count{{{target}}}", f"turns_total{{{code},{status},{target}}}"}
    return dict.fromkeys(counted, float(times))


def answered(status: str, code: str, *, target: str = "team.echo") -> Moved:
    """What moves with a request that is answered, and not executed."""
    return {"claim_seconds_count{}": 1, "reply_seconds_count{}": 1, f"turns_total{{{code},{status},{target}}}": 1}


async def test_turns_refusals_and_replays(settings: Settings, broker: TestBroker) -> None:
    @executor("broken")
    async def broken(turn: Turn) -> JsonValue:
        raise RuntimeError(turn.input)

    async with watched(settings, broker, echo, broken) as worker:
        runs = [await broker.ask(f"s{number}") for number in range(3)]
        await broker.replies_of(runs)
        assert await worker.moved() == taken(times=3)

        await broker.reply(await broker.ask("s4", team_id="broken"))
        assert await worker.moved() == taken("ERROR", "executor_failed", target="team.broken")

        await broker.reply(await broker.ask("s5", team_id="nobody", run_id="r5"))
        assert await worker.moved() == answered("REJECTED", "unknown_target", target="other")

        await broker.ask("s0", "hello", run_id=runs[0])
        replayed = {"claim_seconds_count{}": 1.0, "reply_seconds_count{}": 1.0, "replays_total{}": 1.0}
        await eventually(lambda: len(broker.replies) == 6)
        assert await worker.moved() == replayed

        await broker.ask("s0", "something else", run_id=runs[0])
        await eventually(lambda: len(broker.replies) == 7)
        assert await worker.moved() == answered("REJECTED", "run_id_conflict")

        await broker.publish(b"no request", routing_key="00")
        assert (await broker.dead_letter()).body == b"no request"
        assert await worker.moved() == {"dead_letters_total{malformed_request}": 1}


async def test_a_redelivery_of_a_turn_that_goes_on(settings: Settings, broker: TestBroker) -> None:
    gate = Gate()
    async with watched(settings, broker, gate.executor) as worker:
        run_id = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [run_id])
        for life in tuple(worker.worker.consumers._lives):
            life.end()  # as where the connection is lost
        await eventually(lambda: len(worker.worker.mailboxes) == 2)
        shown = await worker.scrape()
        gauges = ("turns_in_flight", "mailbox_requests", "partitions_owned")
        assert [shown.sum(f"teamturn_{name}") for name in gauges] == [1, 1, settings.partitions]
        assert 0 < shown.sum("teamturn_oldest_request_seconds") < 60
        gate.open.set()
        await broker.reply(run_id)
        expected = taken(target="team.gate") | {"redeliveries_total{}": 1, "replays_total{}": 1}
        expected["claim_seconds_count{}"] = 2
        assert await worker.moved() == expected
        shown = await worker.scrape()
        assert [shown.sum(f"teamturn_{name}") for name in gauges] == [0, 0, settings.partitions]
        assert shown.sum("teamturn_oldest_request_seconds") == 0


async def test_a_session_that_is_held_elsewhere_is_tried_again(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with watched(settings, broker, echo) as worker:
        await database.execute("select pg_advisory_lock(session_lock_key('s1'))")
        run_id = await broker.ask("s1")

        async def again() -> bool:
            return (await worker.scrape()).sum("teamturn_retries_total", what="claim") >= 2

        await eventually(again)
        await database.execute("select pg_advisory_unlock(session_lock_key('s1'))")
        await broker.reply(run_id)
        moved = await worker.moved()
        tries = moved.pop("retries_total{claim}")
        assert moved == taken() | {"claim_seconds_count{}": tries + 1}


@asynccontextmanager
async def disturbed(
    settings: Settings, broker: TestBroker, disturb: Callable[[Worker, Turn], Awaitable[None]]
) -> AsyncIterator[Watched]:
    """A worker whose executor has two steps, and what disturbs its first attempt between them."""
    workers: list[Worker] = []
    disturbances: list[str] = []

    @executor("echo")
    async def stepping(turn: Turn) -> JsonValue:
        await turn.step("first", lambda: 1)
        if turn.run_id not in disturbances:
            disturbances.append(turn.run_id)
            await disturb(workers[0], turn)
        return turn.input

    async with watched(settings, broker, stepping) as worker:
        workers.append(worker.worker)
        yield worker


async def lose_lanes(worker: Worker, _: Turn) -> None:
    for lane in worker.sessions._lanes:
        lane.connection().abandon("the test says so")
    await eventually(lambda: worker.sessions.alive)


async def test_a_lane_that_is_lost_is_a_refused_commit_and_the_result_is_not_made_again(
    settings: Settings, broker: TestBroker
) -> None:
    async with disturbed(settings, broker, lose_lanes) as worker:
        await broker.reply(await broker.ask("s1"))
        moved = await worker.moved()
        assert moved["commits_refused_total{lane_lost}"] == 1
        assert moved["turns_total{none,COMPLETED,team.echo}"] == 1
        assert "resumed_steps_total{}" not in moved
        assert moved["retries_total{claim}"] >= 1


async def test_a_commit_whose_answer_was_lost_is_a_turn_and_no_replay(
    settings: Settings, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = LaneConnection.submit
    lost: list[bool] = []

    async def lose_the_answer(lane: LaneConnection, statement: Statement[Any, Any], row: object) -> object:
        answer = await submit(lane, statement, row)
        if statement is COMMIT and not lost:
            lost.append(True)
            lane.abandon("the test says so")
            raise LaneLost("the test says so")
        return answer

    monkeypatch.setattr(LaneConnection, "submit", lose_the_answer)
    async with watched(settings, broker, echo) as worker:
        await broker.reply(await broker.ask("s1"))
        moved = await worker.moved()
    assert moved["commits_refused_total{lane_lost}"] == 1
    assert moved["turns_total{none,COMPLETED,team.echo}"] == 1
    assert moved["turn_seconds_count{team.echo}"] == 1
    assert "replays_total{}" not in moved


async def test_another_writer_is_a_stale_commit_and_the_steps_are_resumed(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async def write(_: Worker, turn: Turn) -> None:
        await database.execute(
            "update agno_sessions set turn_seq = turn_seq + 1 where session_id = $1", turn.session_id
        )

    async def delete(_: Worker, turn: Turn) -> None:
        await database.execute("delete from agno_sessions where session_id = $1", turn.session_id)

    what = [lambda *_: asyncio.sleep(0), write, delete]

    async def disturb(worker: Worker, turn: Turn) -> None:
        await what.pop(0)(worker, turn)

    async with disturbed(settings, broker, disturb) as worker:
        await broker.reply(await broker.ask("s1"))
        assert await worker.moved() == taken()

        await broker.reply(await broker.ask("s1"))
        expected = taken() | {
            "commits_refused_total{stale}": 1,
            "retries_total{claim}": 1,
            "resumed_steps_total{}": 1,
            "claim_seconds_count{}": 2,
            "commit_seconds_count{}": 2,
        }
        assert await worker.moved() == expected

        await broker.reply(await broker.ask("s1"))
        assert await worker.moved() == taken("ERROR", "session_deleted") | {"commits_refused_total{deleted}": 1}


async def test_requests_that_join_a_turn_are_answered_with_it_and_no_replays(
    settings: Settings, broker: TestBroker
) -> None:
    gate = Gate()
    async with watched(settings, broker, gate.executor) as worker:
        first = await broker.ask("s1", team_id="gate")
        await eventually(lambda: gate.started == [first])
        joined = [await broker.ask("s1", team_id="gate", on_busy="coalesce") for _ in range(3)]
        await eventually(lambda: len(worker.worker.mailboxes) == 4)
        gate.open.set()
        await broker.replies_of(joined)
        moved = await worker.moved()
    assert moved["turns_total{none,COMPLETED,team.gate}"] == 4
    assert moved["turn_seconds_count{team.gate}"] == 2
    assert "replays_total{}" not in moved


def priced(answer: str) -> FunctionModel:
    def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        usage = RequestUsage(input_tokens=1_000_000, output_tokens=10)
        return ModelResponse([TextPart(answer)], usage=usage, model_name="gpt-5", provider_name="openai")

    async def stream(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        yield answer

    return FunctionModel(respond, stream_function=stream, model_name="gpt-5")


async def test_tokens_and_cost_are_counted_by_team_and_model_summaries_included(
    settings: Settings, broker: TestBroker
) -> None:
    team = Team("priced", priced("fine"), session_summary=True)
    async with watched(settings, broker, team) as worker:
        reply = await broker.reply(await broker.ask("s1", team_id="priced"))
        assert reply["metrics"]["input_tokens"] == 1_000_000

        async def summarized() -> bool:
            return (await worker.scrape()).sum("teamturn_tokens_total", target="team.priced") == 2_000_020

        await eventually(summarized)
        before = await worker.scrape()
        assert before.by("direction", "teamturn_tokens_total", model="gpt-5") == {"input": 2_000_000, "output": 20}
        assert before.sum("teamturn_cost_dollars_total", target="team.priced", model="gpt-5") == pytest.approx(2.5002)
        watched_run = await broker.reply(await broker.ask("s2", team_id="priced", stream=True))
        used: int = watched_run["metrics"]["total_tokens"]
        assert used > 0

        async def streamed_and_summarized() -> bool:
            scrape = await worker.scrape()
            return scrape.sum("teamturn_tokens_total") == 3_000_030 + used

        await eventually(streamed_and_summarized)


async def test_what_strangers_send_makes_no_series(settings: Settings, broker: TestBroker) -> None:
    async with watched(settings, broker, echo) as worker:
        await broker.replies_of([await broker.ask("s", user_id="u"), await broker.ask("x", team_id="nobody")])
        await worker.moved()
        before = await worker.scrape()
        kinds = ("team_id", "agent_id", "workflow_id")
        runs = [f"r{number}" for number in range(200)]
        for number, run_id in enumerate(runs):
            body = {"run_id": run_id, "session_id": f"s{number}", "user_id": f"u{number}", "input": f"i{number}"}
            body[kinds[number % 3]] = f"nobody-{number}"
            await broker.publish(body)
        await broker.replies_of(runs)
        await worker.moved()
        after = await worker.scrape()
        assert after.series == before.series
        assert after.by("target", "teamturn_turns_total") == {"other": 201, "team.echo": 1}


async def test_a_scrape_does_not_keep_the_event_loop(settings: Settings, broker: TestBroker) -> None:
    """1.5 ms on this project's machine; here only that nothing of it grows with what the worker holds."""
    gate = Gate()
    async with watched(settings, broker, gate.executor) as worker:
        runs = [await broker.ask(f"s{number}", team_id="gate") for number in range(60)]
        await eventually(lambda: len(gate.started) == len(runs))
        page = worker.worker.pages["/metrics"]
        assert min(timeit.repeat(page, number=1, repeat=5)) < 0.05
        gate.open.set()
        await broker.replies_of(runs)


async def test_the_fleet_is_told_as_postgres_knows_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, postgres_url: str
) -> None:
    await database.execute(
        """
        insert into turn_steps (run_id, request, key, seq, attempt, state, recorded_at)
        select run_id, '', 'first#1', 1, 1, 'done', now() - age
        from (values ('gone', interval '2 hours'), ('young', interval '1 minute'), ('started', interval '2 hours'),
                     ('paused', interval '2 hours'), ('going on', interval '2 hours')) as step (run_id, age);
        insert into turn_attempts (run_id, attempts, started_at) values ('started', 1, now() - interval '10 minutes');
        insert into paused_runs (run_id, session_id, request, expires_at, continued_by)
        values ('paused', 's', '', now(), null), ('before', 's', '', now(), 'going on');
        """
    )
    other = await asyncpg.connect(postgres_url)
    transaction = database.transaction()
    await transaction.start()
    await database.execute("update ai.turn_attempts set attempts = 1")
    waiting = asyncio.create_task(other.execute("update ai.turn_attempts set attempts = 1"))
    try:
        async with watched(settings, broker, echo) as worker:
            began = time.monotonic()

            async def waits() -> bool:
                await worker.worker.fleet_readings.look()
                return (await worker.scrape()).sum("teamturn_fleet_lock_wait_seconds") > 0

            await eventually(waits)
            shown = await worker.scrape()
            assert shown.sum("teamturn_fleet_lock_wait_seconds") < time.monotonic() - began + 30
            assert shown.sum("teamturn_fleet_workers") == 1
            assert 600 <= shown.sum("teamturn_fleet_oldest_turn_seconds") < 660
            assert shown.sum("teamturn_fleet_orphan_steps") == 1
    finally:
        await transaction.rollback()
        await waiting
        await other.close()


async def test_a_fleet_that_can_not_be_read_is_not_told_and_said_once(settings: Settings) -> None:
    readings = FleetReadings(settings.postgres_url, settings.db_schema, settings.prefix)
    await readings.look()
    found = [readings.last.workers]
    readings._schema = "nowhere"
    with capture_logs() as logs:
        await readings.look()
        await readings.look()
    assert [*found, readings.last.workers] == [0, None]
    assert [line["event"] for line in logs] == ["fleet_not_read"]
