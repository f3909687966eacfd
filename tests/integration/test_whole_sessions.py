"""Whole sessions, through a worker and a real database: what a turn is given of its session, and what it leaves."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import asyncpg
import pytest
from pydantic import JsonValue
from pydantic_ai import BinaryContent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo

from tests.support.broker import Json, TestBroker
from tests.support.workers import worker_of
from tests.unit.models import (
    Recorded,
    failing,
    member,
    never_answering,
    prompts,
    responses,
    responses_so_far,
    says,
    tasks,
    text,
)
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.settings import Settings
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Step, Workflow

_PARTS = [
    {"type": "text", "text": "look"},
    {"type": "binary", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()},
]
_BROKEN = failing(ModelHTTPError(400, "told"))


async def session_row(database: asyncpg.Connection) -> Json:
    """The one stored session, its JSON columns parsed."""
    row = await database.fetchrow("select * from agno_sessions")
    assert row is not None
    named = {"metadata", "summary"}
    return {
        name: json.loads(value) if value and (name in named or name.endswith("_data")) else value
        for name, value in row.items()
    }


async def session_data(database: asyncpg.Connection) -> Json:
    return dict((await session_row(database))["session_data"])


async def run_rows(database: asyncpg.Connection) -> list[Json]:
    """The stored runs in the order of readers, their JSON parsed."""
    rows = await database.fetch("select * from agno_runs order by run_index, created_at, run_id")
    return [dict(row) | {"run_data": json.loads(row["run_data"])} for row in rows]


async def answers(broker: TestBroker, *inputs: str, team_id: Any = "t", **fields: Any) -> list[Json]:
    """Ask one after the other in the session s1; the replies."""
    return [await broker.reply(await broker.ask("s1", given, team_id=team_id, **fields)) for given in inputs]


@executor("t")
async def settable(turn: Turn) -> JsonValue:
    """Set the state's key `input`, and fail where told to."""
    turn.session_state["input"] = turn.input
    if turn.input == "fail":
        raise LookupError("told to")
    return dict(turn.session_state)


async def test_parts_travel_to_the_model_are_stored_as_sent_and_are_in_the_next_turn_s_history(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    asked = responses(text("seen"))
    async with worker_of(settings, Team("t", asked.model)):
        await broker.reply(await broker.ask("s1", team_id="t", input=_PARTS))
        await answers(broker, "and now?")
    seen = ["look", BinaryContent(data=b"\x89PNG", media_type="image/png")]
    assert [prompts(messages) for messages in asked.asked] == [[seen], [seen, "and now?"]]
    first, _ = await run_rows(database)
    assert first["run_data"]["input"] == {"input_content": _PARTS}
    assert first["run_data"]["messages"] == [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "seen"},
    ]


async def test_the_history_is_the_last_completed_runs_without_those_of_members(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    leader = responses(text("done"))
    made = Team("t", leader.model, members=[member("a"), member("b")], mode="broadcast", history_runs=2)
    async with worker_of(settings, made):
        await answers(broker, "q1", "q2", "q3", "q4")
    *past, asked = prompts(leader.asked[-1])
    assert past == ["q2", "q3"]
    assert str(asked).startswith("q4")
    rows = await run_rows(database)
    assert [row["run_type"] for row in rows] == ["agent", "agent", "team"] * 4
    assert [row["run_index"] for row in rows] == list(range(12))
    assert all(row["parent_run_id"] == rows[2]["run_id"] for row in rows[:2])


@pytest.mark.parametrize("how", ["fails", "times out"])
async def test_a_run_without_an_answer_is_stored_with_all_it_did_and_is_no_history(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, how: str
) -> None:
    model = _BROKEN if how == "fails" else never_answering()
    leader = Recorded(
        lambda messages, _: tasks(("a", "do")) if prompts(messages)[-1] == "q2" else text(str(prompts(messages)))
    )
    quick = settings.model_copy(update={"turn_timeout": 2.0})
    async with worker_of(quick, Team("t", leader.model, members=[member("a", model)])):
        _, bad, last = await answers(broker, "q1", "q2", "q3")
    code = "model_error" if how == "fails" else "turn_timeout"
    assert (bad["status"], bad["error"]["code"], bad["turn"]) == ("ERROR", code, 2)
    assert last["content"] == "['q1', 'q3']"
    _, members_run, run, _ = await run_rows(database)
    assert (members_run["status"], run["status"]) == ("ERROR" if how == "fails" else "CANCELLED", "ERROR")
    stored = run["run_data"]
    assert (stored["status"], stored["content"], stored["error"]) == ("ERROR", None, bad["error"])
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant"]
    assert stored["messages"][1]["tool_calls"][0]["function"]["name"] == "delegate_task"
    assert (members_run["run_data"]["parent_run_id"], members_run["run_data"]["content"]) == (run["run_id"], None)
    assert members_run["run_data"]["messages"] == [{"role": "user", "content": "do"}]


async def test_the_request_s_state_lies_over_the_stored_one_and_a_failed_turn_changes_nothing_of_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, settable):
        await answers(broker, "one", session_state={"a": 1, "b": {"x": 1}})
        (second,) = await answers(broker, "two", session_state={"b": {"y": 2}})
        assert second["content"] == {"a": 1, "b": {"y": 2}, "input": "two"}
        (failed,) = await answers(broker, "fail", session_state={"a": "changed"})
        assert failed["status"] == "ERROR"
    assert (await session_data(database))["session_state"] == {"a": 1, "b": {"y": 2}, "input": "two"}


async def test_a_session_whose_first_turn_fails_has_an_empty_state_and_goes_on(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, settable):
        await answers(broker, "fail", session_state={"a": 1})
        data = await session_data(database)
        assert data["session_state"] == {}
        assert data["session_metrics"]["details"] == {}
        (second,) = await answers(broker, "two")
    assert (second["content"], second["turn"]) == ({"input": "two"}, 2)


async def test_the_session_s_metadata_is_what_all_requests_brought_and_a_run_keeps_its_own(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    seen: list[dict[str, JsonValue]] = []

    @executor("t")
    async def looks(turn: Turn) -> JsonValue:
        seen.append(dict(turn.metadata))
        return None

    async with worker_of(settings, looks):
        await answers(broker, "one", metadata={"channel": "web", "lang": "en"})
        await answers(broker, "two", metadata={"lang": "de"})
        await answers(broker, "three")
    merged = {"channel": "web", "lang": "de"}
    assert seen == [{"channel": "web", "lang": "en"}, merged, merged]
    assert (await session_row(database))["metadata"] == merged
    assert [row["run_data"].get("metadata") for row in await run_rows(database)] == [
        {"channel": "web", "lang": "en"},
        {"lang": "de"},
        None,
    ]


class Naming:
    """An executor that names its session after its input, and can be held meanwhile."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

        @executor("t")
        async def names(turn: Turn) -> JsonValue:
            before = turn.session_name
            self.started.set()
            await self.open.wait()
            if turn.input != "nothing":
                turn.session_name = turn.input
            if turn.metadata.get("fail"):
                raise LookupError("told to")
            return before

        self.executor = names

    def hold(self) -> None:
        self.started.clear()
        self.open.clear()


async def test_a_name_that_a_turn_gives_its_session_is_stored_and_seen_by_the_next(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, Naming().executor):
        replies = await answers(broker, "First", "nothing", "Second")
        assert [reply["content"] for reply in replies] == [None, "First", "First"]
        assert (await session_data(database))["session_name"] == "Second"
        await answers(broker, "Third", metadata={"fail": True})
    assert (await session_data(database))["session_name"] == "Second", "that of a failed turn is not"


@pytest.mark.parametrize(
    ("given", "name"), [("nothing", "Theirs"), ("Before", "Theirs"), ("Ours", "Ours")], ids=["none", "the same", "new"]
)
async def test_a_rename_while_the_turn_runs_survives_unless_the_turn_changes_the_name_itself(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, given: str, name: str
) -> None:
    naming = Naming()
    async with worker_of(settings, naming.executor):
        await answers(broker, "Before")
        naming.hold()
        run_id = await broker.ask("s1", given, team_id="t")
        await naming.started.wait()
        await database.execute(
            """update agno_sessions set session_data = session_data || '{"session_name": "Theirs", "their_key": 1}'"""
        )
        naming.open.set()
        await broker.reply(run_id)
    data = await session_data(database)
    assert (data["session_name"], data["their_key"]) == (name, 1)


async def test_the_session_s_metrics_are_the_sums_over_its_turns_failed_ones_included(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    def lead(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if responses_so_far(messages):
            return text("done", tokens=(200, 20))
        wanted = "broken" if prompts(messages)[-1] == "q2" else "a"
        return tasks((wanted, "do"), tokens=(100, 10))

    members = [member("a", responses(text("x", tokens=(1_000, 1))).model), member("broken", _BROKEN)]
    async with worker_of(settings, Team("t", Recorded(lead).model, members=members)):
        replies = [reply["metrics"] for reply in await answers(broker, "q1", "q2", "q3")]
    names = ("input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls")
    assert [[metrics[name] for name in names] for metrics in replies] == [
        [1_300, 31, 1_331, 3, 1],
        [100, 10, 110, 1, 0],
        [1_300, 31, 1_331, 3, 1],
    ]
    metrics = (await session_data(database))["session_metrics"]
    assert [metrics[name] for name in names] == [2_700, 72, 2_772, 7, 2]
    assert metrics.keys() == {*names, "details"}


async def test_a_session_says_whose_it_is_by_which_model_and_when_it_began_and_went_on(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async with worker_of(settings, Team("t", says("x"), name="Ours")):
        first, second = await answers(broker, "q1", "q2", user_id="u1")
    row = await session_row(database)
    assert row["team_data"] == {
        "name": "Ours",
        "team_id": "t",
        "model": {"id": "told", "name": "told", "provider": "function"},
    }
    assert (row["session_type"], row["team_id"], row["user_id"]) == ("team", "t", "u1")
    others = ("agent_id", "workflow_id", "agent_data", "workflow_data", "summary")
    assert [row[name] for name in others] == [None] * 5
    assert (row["created_at"], row["updated_at"]) == (first["created_at"], second["completed_at"])
    for stored, reply in zip(await run_rows(database), (first, second), strict=True):
        assert (stored["created_at"], stored["updated_at"]) == (reply["created_at"], reply["completed_at"])
        assert stored["user_id"] == stored["run_data"]["user_id"] == "u1"


@pytest.mark.parametrize("what", ["session_state", "metadata"])
async def test_a_session_that_would_grow_too_large_is_refused_the_request_and_goes_on_without(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, what: str
) -> None:
    @executor("t")
    async def counts(turn: Turn) -> JsonValue:
        return len(turn.session_state if what == "session_state" else turn.metadata)

    async def adding(key: str, value: str) -> Json:
        fields: dict[str, Any] = {what: {key: value}}
        return (await answers(broker, "x", **fields))[0]

    async with worker_of(settings, counts):
        replies = [await adding(f"k{number}", "x" * 900_000) for number in range(6)]
        assert [reply["content"] for reply in replies] == [1, 2, 3, 4, None, None]
        assert {reply["error"]["code"] for reply in replies[4:]} == {"session_too_large"}
        assert {reply["status"] for reply in replies[4:]} == {"REJECTED"}
        (after,) = await answers(broker, "without")
        smaller = await adding("k0", "x")
    assert (after["content"], after["turn"], smaller["content"]) == (4, 5, 4)
    row = await session_row(database)
    kept = row["metadata"] if what == "metadata" else row["session_data"]["session_state"]
    assert {name: len(value) for name, value in kept.items()} == {"k0": 1, "k1": 900_000, "k2": 900_000, "k3": 900_000}


async def test_a_workflow_s_turn_is_a_run_of_its_own_kind_above_those_of_its_steps(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    async def price(turn: Turn) -> JsonValue:
        turn.session_state["priced"] = True
        return 7

    made = Workflow("w", [Step("price", price), Step("text", member("writer", says("It is 7.")))], name="Pricing")
    async with worker_of(settings, made):
        (reply,) = await answers(broker, "how much?", team_id=None, workflow_id="w")
    assert (reply["status"], reply["content"], reply["workflow_id"]) == ("COMPLETED", "It is 7.", "w")
    assert [(one["member_id"], one["content"]) for one in reply["member_responses"]] == [
        ("price", 7),
        ("text", "It is 7."),
    ]
    row = await session_row(database)
    assert (row["session_type"], row["workflow_id"], row["team_id"]) == ("workflow", "w", None)
    assert row["workflow_data"] == {"name": "Pricing", "workflow_id": "w"}
    assert row["session_data"]["session_state"] == {"priced": True}
    step, run = await run_rows(database)
    assert (step["run_type"], step["agent_id"], step["parent_run_id"]) == ("agent", "writer", reply["run_id"])
    assert (run["run_type"], run["workflow_id"], run["run_id"]) == ("workflow", "w", reply["run_id"])
    assert [(one["step_name"], one["step_run_id"]) for one in run["run_data"]["step_results"]] == [
        ("price", None),
        ("text", step["run_id"]),
    ]


async def test_a_single_agent_s_session_is_an_agent_s_and_its_next_turn_has_its_history(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    asked = responses(text("x"))
    async with worker_of(settings, SingleAgent(member("helper", asked.model))):
        _, reply = await answers(broker, "q1", "q2", team_id=None, agent_id="helper")
    assert (reply["session_type"], reply["agent_id"], reply["content"]) == ("agent", "helper", "x")
    assert prompts(asked.asked[-1]) == ["q1", "q2"]
    row = await session_row(database)
    assert (row["session_type"], row["agent_id"], row["team_id"], row["team_data"]) == ("agent", "helper", None, None)
    assert (row["agent_data"]["agent_id"], row["agent_data"]["model"]["provider"]) == ("helper", "function")
    first, _ = await run_rows(database)
    assert (first["run_type"], first["agent_id"], first["parent_run_id"]) == ("agent", "helper", None)
    assert first["run_data"]["messages"][-1] == {"role": "assistant", "content": "x"}
