"""Storage to the letter of Agno 3's layout, of turns that were really taken: every kind of run, and its session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, cast

import pytest
from pydantic import BaseModel
from pydantic_ai import Tool
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.test import TestModel

from tests.unit.examples import NOW, a_claim, a_past_run, a_request, context_of
from tests.unit.models import failing, member, never_answering, responses, says, tasks, text
from worker.executors.attempt import attempt, new_turn
from worker.executors.function import executor
from worker.executors.turn import Executor, PastRun, Turn
from worker.replies.answers import Timing, finished
from worker.sessions.store import ClaimedSession
from worker.sessions.stored_runs import FinishedTurn
from worker.sessions.writes import Writes
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Step, Workflow

Json = dict[str, Any]

_TIMING = Timing(queued=1_900_000_000, started=1_900_000_001, ended=1_900_000_003)
_STATUSES = {"PENDING", "RUNNING", "COMPLETED", "PAUSED", "CANCELLED", "ERROR", "REGENERATED"}
_BROKEN: Final = ModelHTTPError(400, "told")


@dataclass(frozen=True)
class Rows:
    """What a turn hands over to be stored: the session's values, and the runs in the order of their indexes."""

    session: Json
    kinds: list[str]
    runs: list[Json]

    @property
    def run(self) -> Json:
        """The request's own run."""
        return self.runs[-1]


async def taken(made: Executor, *, history: Sequence[PastRun] = (), seconds: float = 30, **fields: Any) -> Rows:
    """Take a turn and return its rows, as JSON that Postgres would give back."""
    kind = made.target.type.value
    target: Json = {"team_id": ...} | {f"{kind}_id": made.target.id}
    request = a_request(**target | fields)
    turn = new_turn(request, None, context_of(*history), attempt=1)
    outcome = await attempt(made, turn, limit=timedelta(seconds=seconds), now=NOW, deadline=None)
    reply = finished(request, turn, outcome, number=1, timing=_TIMING)
    left = FinishedTurn(
        name=made.name,
        model_name=made.model_name,
        session_state=outcome.session_state,
        messages=tuple(turn.messages),
        member_runs=tuple(turn.member_runs),
        step_results=tuple(turn.step_results),
    )
    claimed = ClaimedSession(request=request, claim=a_claim(), _lane=cast("Any", None), _writes=Writes())
    runs = claimed._runs(reply, left)
    stored = json.loads(json.dumps([claimed._session(reply, left), [run["data"] for run in runs]]))
    return Rows(stored[0], [run["type"] for run in runs], stored[1])


def chooses(member_id: str) -> ModelResponse:
    return ModelResponse(parts=[ToolCallPart("route_to_member", {"member_id": member_id})])


async def look_up(city: str) -> Json:
    """Look a city up."""
    return {"city": city, "people": 2_000_000}


@executor("plain")
async def plain(turn: Turn) -> str:
    return f"you said {turn.input}"


class City(BaseModel):
    name: str


async def price(_: Turn) -> int:
    return 7


def lone() -> Team:
    return Team("lone", says("Paris"), name="Lone")


def coordinating() -> Team:
    inner = Team("inner", responses(tasks(("deep", "dig")), text("dug")).model, members=[member("deep")])
    leader = responses(tasks(("finder", "find it"), ("inner", "do it")), text("found"))
    return Team("lead", leader.model, members=[member("finder"), inner])


def routing() -> Team:
    return Team("router", responses(chooses("b")).model, members=[member("a"), member("b")], mode="route")


def broadcasting() -> Team:
    return Team("panel", says("in sum"), members=[member("a"), member("b")], mode="broadcast")


def structured() -> Team:
    return Team("city", TestModel(custom_output_args={"name": "Paris"}), output_type=City)


def single() -> SingleAgent:
    return SingleAgent(member("helper", says("helped")))


def flow() -> Workflow:
    steps: list[Any] = [Step("price", price), Step("draft", member("writer", says("written"))), lone()]
    return Workflow("flow", steps, name="Flow")


def broken() -> Team:
    return Team("broken", responses(tasks(("a", "x"))).model, members=[member("a", failing(_BROKEN))])


_ALL = [lone, coordinating, routing, broadcasting, structured, single, flow, broken, lambda: plain]
every_kind = pytest.mark.parametrize("made", _ALL, ids=lambda made: made.__name__)


@every_kind
async def test_kinds_are_lower_case_and_statuses_upper_case(made: Any) -> None:
    rows = await taken(made())
    assert {*rows.kinds, rows.session["session_type"]} <= {"team", "agent", "workflow"}
    assert {run["status"] for run in rows.runs} <= _STATUSES
    assert rows.kinds[-1] == rows.session["session_type"]


@every_kind
async def test_a_run_names_its_own_kind_and_no_other_not_even_as_null(made: Any) -> None:
    rows = await taken(made())
    for kind, run in zip(rows.kinds, rows.runs, strict=True):
        assert [name for name in ("agent_id", "team_id", "workflow_id") if name in run] == [f"{kind}_id"]
        assert [name for name in ("agent_name", "team_name", "workflow_name") if name in run] == [f"{kind}_name"]


@every_kind
async def test_a_member_s_run_comes_before_the_one_it_belongs_to_which_is_stored_with_it(made: Any) -> None:
    rows = await taken(made())
    order = [run["run_id"] for run in rows.runs]
    assert len(set(order)) == len(order)
    assert "parent_run_id" not in rows.run
    assert all(order.index(run["run_id"]) < order.index(run["parent_run_id"]) for run in rows.runs[:-1])


@every_kind
async def test_every_run_has_at_least_what_agno_needs_of_it(made: Any) -> None:
    rows = await taken(made(), user_id="u1")
    for run in rows.runs:
        assert (run["session_id"], run["user_id"]) == ("s1", "u1")
        assert {"run_id", "input", "content", "content_type", "messages"} <= run.keys()
        assert isinstance(run["created_at"], int)
    assert rows.run["created_at"] == 1_900_000_001


@every_kind
async def test_messages_go_from_what_was_asked_to_the_answer_in_agno_s_roles(made: Any) -> None:
    rows = await taken(made(), history=[a_past_run(1)], input="what?")
    assert rows.run["messages"][0] == {"role": "user", "content": "what?"}
    for run in rows.runs:
        said = run["messages"]
        assert {message["role"] for message in said} <= {"user", "assistant", "tool"}
        assert [message["role"] for message in said].count("user") == 1
        assert "question 1" not in str(said), "the history is not stored again"
        if run["status"] == "COMPLETED":
            content = run["content"]
            answer = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
            assert (said[-1]["role"], said[-1]["content"]) == ("assistant", answer)
            assert not said[-1].get("tool_calls")


@every_kind
async def test_each_tool_message_answers_a_call_before_it(made: Any) -> None:
    for run in (await taken(made())).runs:
        called: set[str] = set()
        for message in run["messages"]:
            called |= {call["id"] for call in message.get("tool_calls", ())}
            if message["role"] == "tool":
                assert message["tool_call_id"] in called


async def test_tool_calls_and_what_they_returned_have_agno_s_shape() -> None:
    call = ToolCallPart("look_up", {"city": "Paris"}, tool_call_id="c1")
    again = ToolCallPart("look_up", {"town": "Paris"}, tool_call_id="c2")
    leader = responses(ModelResponse(parts=[TextPart("I look."), call]), ModelResponse(parts=[again]), text("2 m"))
    rows = await taken(Team("t", leader.model, tools=[Tool(look_up)]))
    _, asked, returned, asked_again, refused, answer = rows.run["messages"]
    function = {"name": "look_up", "arguments": '{"city":"Paris"}'}
    assert asked == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert returned == {
        "role": "tool",
        "content": '{"city":"Paris","people":2000000}',
        "tool_call_id": "c1",
        "tool_name": "look_up",
        "tool_call_error": False,
    }
    assert (asked_again["content"], asked_again["tool_calls"][0]["id"]) == (None, "c2")
    assert (refused["tool_call_id"], refused["tool_name"], refused["tool_call_error"]) == ("c2", "look_up", True)
    assert answer == {"role": "assistant", "content": "2 m"}


async def test_a_team_s_run_and_session_are_as_agno_s() -> None:
    rows = await taken(lone(), user_id="u1")
    least = {
        "run_id": "r1",
        "team_id": "lone",
        "team_name": "Lone",
        "session_id": "s1",
        "user_id": "u1",
        "input": {"input_content": "hello"},
        "content": "Paris",
        "content_type": "str",
        "status": "COMPLETED",
        "created_at": 1_900_000_001,
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Paris"}],
        "member_responses": [],
    }
    assert {name: rows.run.get(name) for name in least} == least
    assert rows.session["team_data"] == {
        "name": "Lone",
        "team_id": "lone",
        "model": {"id": "told", "name": "told", "provider": "function"},
    }
    assert (rows.session["team_id"], rows.session["session_state"]) == ("lone", {})


async def test_the_runs_below_a_team_s_are_agents_and_teams_each_below_its_own_leader() -> None:
    rows = await taken(coordinating())
    finder, deep, inner, own = rows.runs
    assert rows.kinds == ["agent", "agent", "team", "team"]
    assert (finder["agent_id"], finder["parent_run_id"]) == ("finder", own["run_id"])
    assert (deep["agent_id"], deep["parent_run_id"]) == ("deep", inner["run_id"])
    assert (inner["team_id"], inner["parent_run_id"]) == ("inner", own["run_id"])
    assert finder["input"] == {"input_content": "find it"}
    assert inner["messages"][0] == {"role": "user", "content": "do it"}


async def test_a_routed_answer_is_the_team_s_last_message() -> None:
    rows = await taken(routing())
    assert rows.run["content"] == "[hello]"
    assert [message["role"] for message in rows.run["messages"]] == ["user", "assistant", "tool", "assistant"]


async def test_what_members_answered_is_not_what_the_user_said() -> None:
    rows = await taken(broadcasting())
    assert rows.run["messages"] == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "in sum"}]


async def test_structured_output_is_json_in_the_content_and_text_in_the_messages() -> None:
    run = (await taken(structured())).run
    assert (run["content"], run["content_type"] != "str") == ({"name": "Paris"}, True)
    assert run["messages"][-1] == {"role": "assistant", "content": '{"name":"Paris"}'}


async def test_an_agent_s_session_and_run_are_an_agent_s_without_a_parent() -> None:
    rows = await taken(single())
    assert rows.session["agent_data"]["agent_id"] == rows.run["agent_id"] == "helper"
    assert (rows.run["agent_name"], rows.run["input"]) == ("helper", {"input_content": "hello"})
    assert {"team_data", "team_id"}.isdisjoint(rows.session)


async def test_a_workflow_s_run_has_the_shape_that_agno_reads_workflows_in() -> None:
    rows = await taken(flow())
    writer, led, run = rows.runs
    assert rows.kinds == ["agent", "team", "workflow"]
    assert run["input"] == "hello", "not an object"
    assert run["metrics"]["steps"] == {}
    assert "member_responses" not in run
    steps = run["step_results"]
    assert [(one["step_name"], one["executor_type"], one["step_run_id"]) for one in steps] == [
        ("price", "function", None),
        ("draft", "agent", writer["run_id"]),
        ("lone", "team", led["run_id"]),
    ]
    assert [(one["content"], one["success"]) for one in steps] == [(7, True), ("written", True), ("Paris", True)]
    assert [one["executor_name"] for one in steps] == ["price", "writer", "Lone"]
    assert {writer["parent_run_id"], led["parent_run_id"]} == {"r1"}
    assert rows.session["workflow_data"] == {"name": "Flow", "workflow_id": "flow"}


async def test_a_run_that_failed_is_an_error_that_says_nothing_as_the_assistant() -> None:
    rows = await taken(broken())
    for run in rows.runs:
        assert (run["status"], run["content"], run["error"]["code"]) == ("ERROR", None, "model_error")
        assert not any(message["role"] == "assistant" and message["content"] for message in run["messages"])
    assert rows.session["session_state"] is None, "the stored one stays"


async def test_a_run_that_was_cut_off_leaves_its_member_s_cancelled() -> None:
    made = Team("t", responses(tasks(("slow", "x"))).model, members=[member("slow", never_answering())])
    rows = await taken(made, seconds=0.1)
    assert [run["status"] for run in rows.runs] == ["CANCELLED", "ERROR"]


@every_kind
async def test_no_character_is_stored_that_jsonb_refuses(made: Any) -> None:
    rows = await taken(made(), input="a\x00b", metadata={"k\x00": "\x00"}, session_state={"s\x00": "\x00"})
    assert "\\u0000" not in json.dumps([rows.session, rows.runs])
