"""Summaries of sessions: written beside the turns, one at a time for each session, and never lost for good."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, FunctionModel
from structlog.testing import capture_logs

from tests.integration.test_claim_and_commit import store_of, take
from tests.support.broker import Json, TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from tests.unit.models import Recorded, member, never_answering, prompts, text
from worker.executors.turn import Usage
from worker.settings import Settings
from worker.team.summary import SessionSummary
from worker.team.team import Team


class Scribe:
    """A model that writes summaries: "summary 1", "summary 2", …; it can be held, and told to fail or to reject."""

    def __init__(self, *, held: bool = False, failures: int = 0, rejects: Callable[[str], bool] | None = None) -> None:
        self.asked: list[str] = []
        """The conversations that it was given."""
        self.taken: list[str] = []
        """Those of them that it wrote a summary of."""
        self.most_at_once = 0
        self.open = asyncio.Event()
        if not held:
            self.open.set()
        self._under_way = 0
        self._failures = failures
        self.rejects = rejects or (lambda _: False)
        """Whether it won't take a conversation."""

    @property
    def model(self) -> FunctionModel:
        async def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
            self.asked.append(str(prompts(messages)[-1]))
            number = len(self.asked)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            await self.open.wait()
            self._under_way -= 1
            if number <= self._failures:
                raise ModelHTTPError(401, "told")
            if self.rejects(self.asked[-1]):
                raise ModelHTTPError(400, "told")
            self.taken.append(self.asked[-1])
            return text(f"summary {number}", tokens=(500, 50))

        return FunctionModel(respond, model_name="scribe")

    def was_asked(self, times: int) -> bool:
        return len(self.asked) == times


def answering() -> Recorded:
    """A leader that answers "re: …", and fails at "fail"."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if prompts(messages)[-1] == "fail":
            raise ModelHTTPError(400, "told")
        return text(f"re: {prompts(messages)[-1]}")

    return Recorded(answer)


def summed_up(leader: Recorded, model: FunctionModel, *, team_id: str = "t", **options: Any) -> Team:
    return Team(team_id, leader.model, session_summary=SessionSummary(model=model), **options)


async def ask(broker: TestBroker, *inputs: str, session_id: str = "s1", team_id: str = "t") -> list[Json]:
    """Ask one after the other; the replies."""
    return [await broker.reply(await broker.ask(session_id, given, team_id=team_id)) for given in inputs]


async def session_row(database: asyncpg.Connection, session_id: str = "s1") -> Json:
    row = await database.fetchrow("select * from agno_sessions where session_id = $1", session_id)
    assert row is not None
    summary = json.loads(row["summary"]) if row["summary"] else None
    return dict(row) | {"summary": summary, "session_data": json.loads(row["session_data"])}


async def store_runs(database: asyncpg.Connection, count: int, *, characters: int = 0) -> None:
    """Store a session of so many runs: what was asked is "q0.", "q1.", …, and what was answered is as long as told."""
    await database.execute(
        "insert into agno_sessions (session_id, session_type, team_id, created_at) values ('s1', 'team', 't', 1)"
    )
    await database.execute(
        """insert into agno_runs (run_id, session_id, run_type, status, run_index, run_data, created_at)
           select 'r' || n, 's1', 'team', 'COMPLETED', n, jsonb_build_object(
               'run_id', 'r' || n, 'created_at', 1, 'content', repeat('x', $2),
               'input', jsonb_build_object('input_content', 'q' || n || '.' || repeat('x', $2))
           ), 1
           from generate_series(0, $1 - 1) as n""",
        count,
        characters,
    )


def runs_in(conversation: str) -> list[int]:
    """The numbers of the stored runs in a conversation."""
    return [int(number) for number in re.findall(r"User: q(\d+)\.", conversation)]


async def covered(database: asyncpg.Connection, run_index: int, session_id: str = "s1") -> None:
    """Wait until the session's summary covers its runs up to a run_index."""

    async def is_covered() -> bool:
        return bool((await session_row(database, session_id))["summary_run_index"] == run_index)

    await eventually(is_covered)


async def test_the_reply_does_not_wait_for_the_summary(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe(held=True)
    async with worker_of(settings, summed_up(answering(), scribe.model)):
        (reply,) = await ask(broker, "q1")
        assert (reply["status"], reply["content"]) == ("COMPLETED", "re: q1")
        await eventually(lambda: scribe.was_asked(1))
        assert await broker.depth("requests.0") + await broker.depth("requests.1") == 0
        assert (await session_row(database))["summary"] is None
        scribe.open.set()
        await covered(database, 0)
    assert "User: q1\nAssistant: re: q1" in scribe.asked[0]


async def test_a_summary_is_stored_in_agno_s_keys_and_what_it_covers_beside_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    made = summed_up(answering(), Scribe().model, members=[member("a"), member("b")], mode="broadcast")
    async with worker_of(settings, made):
        await ask(broker, "q1")
        await covered(database, 2)
    summary = (await session_row(database))["summary"]
    assert summary.keys() == {"summary", "updated_at"}
    assert summary["summary"] == "summary 1"
    assert datetime.fromisoformat(summary["updated_at"]).utcoffset() == timedelta(0)
    assert await database.fetchval("select run_type from agno_runs where run_index = 2") == "team"


async def test_the_leader_sees_the_summary_and_the_runs_that_it_does_not_cover(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    leader, scribe = answering(), Scribe()
    async with worker_of(settings, summed_up(leader, scribe.model, history_runs=1)):
        await ask(broker, "q1", "q2")
        await covered(database, 1)
        scribe.open.clear()
        await ask(broker, "q3", "q4", "q5")
        await eventually(lambda: "q3" in scribe.asked[-1])
        scribe.open.set()
        await covered(database, 4)
        last = f"summary {len(scribe.asked)}"
        await ask(broker, "q6")
    assert [prompts(messages) for messages in leader.asked] == [
        ["q1"],
        ["q1", "q2"],
        ["q2", "q3"],
        ["q3", "q4"],
        ["q3", "q4", "q5"],
        ["q5", "q6"],
    ]
    assert leader.infos[0].instructions is None
    assert last in (leader.infos[-1].instructions or "")


async def test_without_a_summary_a_turn_sees_the_runs_that_one_should_have_covered(
    settings: Settings, broker: TestBroker
) -> None:
    leader = answering()
    async with worker_of(settings, summed_up(leader, never_answering(), history_runs=0)):
        await ask(broker, "q1", "q2", "q3")
    assert prompts(leader.asked[-1]) == ["q1", "q2", "q3"]
    assert leader.infos[-1].instructions is None


async def test_a_summary_that_failed_is_made_up_for_after_the_next_turn(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe(failures=1)
    with capture_logs() as logged:  # drawing the traceback for a terminal would take seconds
        async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
            await ask(broker, "q1")
            await eventually(lambda: scribe.was_asked(1))
            await worker.summaries.drained()
            assert (await session_row(database))["summary"] is None
            await ask(broker, "q2")
            await covered(database, 1)
    assert [event["reason"] for event in logged if event["event"] == "summary_not_written"] == ["ModelHTTPError"]
    first, second = scribe.asked
    assert "q1" in first
    assert "User: q1\nAssistant: re: q1\n\nUser: q2\nAssistant: re: q2" in second


async def test_a_summary_that_another_program_took_away_is_written_anew(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    leader, scribe = answering(), Scribe()
    async with worker_of(settings, summed_up(leader, scribe.model, history_runs=0)):
        await ask(broker, "q1", "q2")
        await covered(database, 1)
        await database.execute("update agno_sessions set summary = null")
        await ask(broker, "q3")
        assert prompts(leader.asked[-1]) == ["q1", "q2", "q3"]
        await covered(database, 2)
    assert all(f"User: {given}" in scribe.asked[-1] for given in ("q1", "q2", "q3"))


async def test_turns_in_quick_succession_have_one_summary_at_a_time_and_the_next_goes_on_from_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe(held=True)
    async with worker_of(settings, summed_up(answering(), scribe.model)):
        await ask(broker, "q1")
        await eventually(lambda: scribe.was_asked(1))
        await ask(broker, "q2", "q3")
        scribe.open.set()
        await covered(database, 2)
    assert scribe.most_at_once == 1
    assert "summary 1" in scribe.asked[1]
    assert "q1" not in scribe.asked[1]
    assert [f"q{number}" in "".join(scribe.asked[1:]) for number in (2, 3)] == [True, True]


async def test_summaries_of_different_sessions_are_written_side_by_side(settings: Settings, broker: TestBroker) -> None:
    scribe = Scribe(held=True)
    async with worker_of(settings, summed_up(answering(), scribe.model)):
        for session_id in ("s1", "s2", "s3"):
            await ask(broker, "q", session_id=session_id)
        await eventually(lambda: scribe.most_at_once == 3)


async def test_only_what_was_answered_is_summed_up(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe()
    made = summed_up(answering(), scribe.model, members=[member("a")], mode="broadcast")
    lone = summed_up(answering(), scribe.model, team_id="lone")
    async with worker_of(settings, made, lone):
        await ask(broker, "q1", "fail", "q3", team_id="lone")
        await covered(database, 2)
        await ask(broker, "q1", session_id="s2")
        await covered(database, 1, "s2")
    assert "fail" not in "".join(scribe.asked)
    assert scribe.asked[-1].count("User:") == 1, "the member's run is not one of the conversation"


async def test_many_uncovered_runs_are_summed_up_in_pieces(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        for number in range(24):
            await take(store, f"r{number}", content=f"a{number}")
    scribe = Scribe()
    async with worker_of(settings, summed_up(answering(), scribe.model, team_id="echo")):
        await broker.reply(await broker.ask("s1", "last", team_id="echo", user_id="u1"))
        await covered(database, 24)
    assert [asked.count("User:") for asked in scribe.asked] == [20, 5]
    assert scribe.asked[1].startswith("The summary so far:\nsummary 1")


async def test_a_session_switched_on_late_has_its_last_runs_summed_up_in_two_calls(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    await store_runs(database, 200)
    scribe = Scribe()
    async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
        await ask(broker, "last.")
        await covered(database, 200)
        await worker.summaries.drained()
        assert [runs_in(asked) for asked in scribe.asked] == [list(range(161, 181)), list(range(181, 200))]
        await database.execute("update agno_sessions set summary = null")
        await ask(broker, "again.")
        await covered(database, 201)
    assert len(scribe.asked) == 4, "one that was taken away costs no more"
    assert "The summary so far" not in scribe.asked[2]


async def test_a_turn_has_three_summaries_written_at_most_and_the_next_goes_on(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    await store_runs(database, 30, characters=7_000)
    scribe = Scribe()
    async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
        await ask(broker, "first")
        await covered(database, 8)
        await worker.summaries.drained()
        assert [runs_in(asked) for asked in scribe.asked] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        await ask(broker, "second")
        await covered(database, 17)
    assert runs_in(scribe.asked[3]) == [9, 10, 11]
    assert max(map(len, scribe.asked)) < 50_000


async def test_a_batch_that_the_provider_rejects_is_halved(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    await store_runs(database, 30)
    scribe = Scribe(rejects=lambda conversation: len(runs_in(conversation)) > 5)
    async with worker_of(settings, summed_up(answering(), scribe.model)):
        await ask(broker, "last")
        await covered(database, 14)
    assert [len(runs_in(asked)) for asked in scribe.asked] == [20, 10, 5, 5, 5]


async def test_a_run_that_the_provider_rejects_by_itself_is_left_out(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe(rejects=lambda conversation: "poison" in conversation)
    with capture_logs() as logged:
        async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
            await ask(broker, "q1", "poison")
            await covered(database, 0)
            await worker.summaries.drained()
            await ask(broker, "q3")
            await covered(database, 2)
    assert "User: q3" in scribe.taken[-1]
    assert [event["runs"] for event in logged if event["event"] == "summary_rejected"][-1] == 1


async def test_where_every_run_is_rejected_none_is_given_up(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    """It is then no run's fault: a setting, say, that the model doesn't know."""
    await store_runs(database, 30)
    scribe = Scribe(rejects=lambda _: True)
    async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
        await ask(broker, "first")
        await eventually(lambda: len(scribe.asked) == 8)
        await worker.summaries.drained()
        assert (await session_row(database))["summary"] is None
        scribe.rejects = lambda _: False
        await ask(broker, "second")
        await covered(database, 31)
    assert runs_in("".join(scribe.taken)) == list(range(30))
    assert [len(runs_in(asked)) for asked in scribe.asked[:8]] == [20, 10, 5, 2, 1, 1, 1, 1]


async def test_of_large_runs_fewer_are_read_at_once(settings: Settings) -> None:
    async with store_of(settings) as store:
        for number in range(4):
            await take(store, f"r{number}", content=os.urandom(1_500_000).hex())
        lacking = await store.unsummarized("s1")
        assert lacking is not None
        assert 1 <= len(lacking.runs) < 4
        assert lacking.run_indexes == tuple(range(len(lacking.runs)))
        last = await store.unsummarized("s1", after=2)
        assert last is not None
        assert last.run_indexes == (3,)


async def test_for_a_session_deleted_meanwhile_nothing_is_written(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    scribe = Scribe(held=True)
    async with worker_of(settings, summed_up(answering(), scribe.model)) as worker:
        await ask(broker, "q1")
        await eventually(lambda: scribe.was_asked(1))
        await database.execute("delete from agno_sessions")
        scribe.open.set()
        await worker.summaries.drained()
    assert await database.fetchval("select count(*) from agno_sessions") == 0
    assert scribe.was_asked(1)


async def test_a_summary_never_replaces_one_that_covers_as_much_or_more(
    settings: Settings, database: asyncpg.Connection
) -> None:
    async with store_of(settings) as store:
        for number in range(3):
            await take(store, f"r{number}")
        await store.store_summary("s1", "newer", up_to=1, usage=Usage(5, 1, 1, 0))
        for up_to in (0, 1):
            await store.store_summary("s1", "older", up_to=up_to, usage=Usage(5, 1, 1, 0))
        row = await session_row(database)
        assert (row["summary"]["summary"], row["summary_run_index"]) == ("newer", 1)
        await store.store_summary("s1", "newest", up_to=2, usage=Usage(5, 1, 1, 0))
        await store.store_summary("nowhere", "newest", up_to=2, usage=Usage(5, 1, 1, 0))
    row = await session_row(database)
    assert (row["summary"]["summary"], row["summary_run_index"]) == ("newest", 2)
    assert row["turn_seq"] == 3, "no turn is outdated by a summary"


async def test_what_a_summary_costs_is_the_session_s_and_no_turn_s(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, summed_up(answering(), Scribe().model)):
        (reply,) = await ask(broker, "q1")
        await covered(database, 0)
    names = ("input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls")
    assert [reply["metrics"][name] for name in names] == [10, 2, 12, 1, 0]
    metrics = (await session_row(database))["session_data"]["session_metrics"]
    assert [metrics[name] for name in names] == [510, 52, 562, 2, 0]


@pytest.mark.parametrize("drained", [True, False])
async def test_a_worker_ends_though_a_summary_is_never_written_and_the_next_one_makes_up_for_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, *, drained: bool
) -> None:
    brief = settings.model_copy(update={"drain_timeout": 0.2})
    waiting = Scribe(held=True)
    async with asyncio.timeout(30):
        async with worker_of(brief, summed_up(answering(), waiting.model)) as worker:
            await ask(broker, "q1")
            await eventually(lambda: waiting.was_asked(1))
            if drained:
                await worker.drain()
        assert (await session_row(database))["summary"] is None
        scribe = Scribe()
        async with worker_of(brief, summed_up(answering(), scribe.model)):
            await ask(broker, "q2")
            await covered(database, 1)
    assert "q1" in scribe.asked[0]


async def test_a_finished_run_that_is_delivered_again_has_its_summary_made_up_for(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    waiting, scribe = Scribe(held=True), Scribe()
    async with worker_of(settings, summed_up(answering(), waiting.model)):
        await broker.ask("s1", "q1", team_id="t", run_id="the-run")
        await broker.reply("the-run")
        await eventually(lambda: waiting.was_asked(1))
    leader = answering()
    async with worker_of(settings, summed_up(leader, scribe.model)):
        await broker.ask("s1", "q1", team_id="t", run_id="the-run")
        await covered(database, 0)
        await eventually(lambda: len(broker.replies) == 2)
    assert leader.asked == [], "the run itself is not taken again"
    assert len({message.body for message in broker.replies}) == 1


@pytest.mark.parametrize("times", [1, 2], ids=["delivered once", "delivered twice"])
@pytest.mark.parametrize(
    ("refused", "code"),
    [
        ({"team_id": "t", "user_id": "u1"}, "session_target_mismatch"),
        ({"team_id": "t", "user_id": "u2"}, "session_forbidden"),
    ],
)
async def test_a_refused_request_has_no_summary_written_of_somebody_else_s_session(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, refused: Json, code: str, *, times: int
) -> None:
    """Its team's model would be given what another's users said."""
    scribe = Scribe()
    async with worker_of(settings, Team("plain", answering().model), summed_up(answering(), scribe.model)) as worker:
        await broker.reply(await broker.ask("s1", "secret", team_id="plain", user_id="u1"))
        for _ in range(times):
            await broker.ask("s1", "mine", run_id="refused", **refused)
        assert (await broker.reply("refused"))["error"]["code"] == code
        await eventually(lambda: len(broker.replies) == 1 + times)
        await ask(broker, "q1", session_id="s2")
        await covered(database, 0, "s2")
        await worker.summaries.drained()
    assert "secret" not in "".join(scribe.asked)
    assert (await session_row(database))["summary"] is None
