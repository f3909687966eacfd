"""The modes of a team: one member answers, all of them do, or a leader asks whom it wants; and their limits."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, Tool
from pydantic_ai.concurrency import ConcurrencyLimiter
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import UsageLimits

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.examples import a_past_run, a_request, a_turn, agent, context_of, everything_that_can_run, team
from tests.unit.models import Recorded, failing, member, never_answering, prompts, responses, says, tasks, text
from worker.errors import ModelFailed, ToolFailed, TurnTimedOut, UsageLimitReached
from worker.executors.attempt import new_turn
from worker.executors.turn import Turn
from worker.team.team import Team

_PICTURE = {"type": "binary", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}
_BROKEN = ModelHTTPError(400, "told")


def chooses(member_id: str) -> ModelResponse:
    """A response of a leader that routes."""
    return ModelResponse(parts=[ToolCallPart("route_to_member", {"member_id": member_id})])


def asks_all(task: str) -> ModelResponse:
    """A response of a leader that gives everybody a task."""
    return ModelResponse(parts=[ToolCallPart("delegate_to_all", {"task": task})])


def returned(messages: Sequence[ModelMessage]) -> list[object]:
    """What tools returned to a model."""
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return [part.content for message in requests for part in message.parts if isinstance(part, ToolReturnPart)]


def meeting(parties: int, content: str = "met") -> FunctionModel:
    """A model that answers no request before so many are under way."""
    met = asyncio.Barrier(parties)

    async def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        async with asyncio.timeout(10):
            await met.wait()
        return text(content)

    return FunctionModel(respond, model_name="told")


def crowd() -> tuple[FunctionModel, list[int]]:
    """A model, and how many requests were under way at each of its requests."""
    under_way: list[int] = []
    now = 0

    async def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        nonlocal now
        now += 1
        under_way.append(now)
        await everything_that_can_run()
        now -= 1
        return text("x")

    return FunctionModel(respond, model_name="told"), under_way


def statuses(turn: Turn) -> dict[str, RunStatus]:
    return {run.member.id: run.status for run in turn.member_runs}


# --- route


async def test_the_chosen_member_is_given_the_input_itself_and_its_answer_is_the_answer() -> None:
    turn = a_turn(input="what?")
    made = Team("t", responses(chooses("b")).model, members=[member("a"), member("b")], mode="route")
    assert await made.run(turn) == "[what?]"
    (run,) = turn.member_runs
    assert (run.member, run.parent_run_id, run.input) == (agent("b"), turn.run_id, "what?")
    assert (run.content, run.status) == ("[what?]", RunStatus.COMPLETED)


async def test_the_leader_that_routes_is_told_the_tool_by_its_name_and_the_members_it_may_choose() -> None:
    leader = responses(chooses("a"))
    await Team("t", leader.model, members=[member("a"), member("b")], mode="route").run(a_turn())
    (tool,) = leader.infos[0].output_tools
    assert tool.name in (leader.infos[0].instructions or "")
    assert tool.parameters_json_schema["properties"]["member_id"]["enum"] == ["a", "b"]


async def test_the_chosen_member_sees_the_parts_and_the_history_of_the_session() -> None:
    chosen = responses(text("seen"))
    request = a_request(input=[{"type": "text", "text": "look"}, _PICTURE])
    turn = new_turn(request, None, context_of(a_past_run(1), a_past_run(2)), attempt=1)
    made = Team("t", responses(chooses("a")).model, members=[member("a", chosen.model)], mode="route")
    assert await made.run(turn) == "seen"
    *past, given = prompts(chosen.asked[0])
    assert past == ["question 1", "question 2"]
    assert given == ["look", BinaryContent(data=b"\x89PNG", media_type="image/png")]
    assert turn.member_runs[0].input == request.input


async def test_members_that_are_not_to_see_the_history_see_the_input_only() -> None:
    chosen = responses(text("seen"))
    members = [member("a", chosen.model)]
    made = Team("t", responses(chooses("a")).model, members=members, mode="route", add_history_to_members=False)
    await made.run(new_turn(a_request(), None, context_of(a_past_run(1)), attempt=1))
    assert prompts(chosen.asked[0]) == ["hello"]


async def test_the_chosen_member_s_structured_output_is_the_answer_as_json() -> None:
    class City(BaseModel):
        name: str

    model = TestModel(custom_output_args={"name": "Paris"})
    finder: Agent[Turn, City] = Agent(model, name="finder", deps_type=Turn, output_type=City)
    made = Team("t", responses(chooses("finder")).model, members=[finder], mode="route")
    assert await made.run(a_turn()) == {"name": "Paris"}


async def test_an_unknown_choice_is_told_to_the_leader_who_may_correct_itself() -> None:
    leader = responses(chooses("nobody"), chooses("a"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[member("a")], mode="route").run(turn) == "[hello]"
    assert "'nobody'" in str(returned(leader.asked[1]))
    assert statuses(turn) == {"a": RunStatus.COMPLETED}


async def test_a_leader_that_routes_may_use_its_tools_first() -> None:
    async def look_up() -> str:
        return "ask a"

    leader = responses(ModelResponse(parts=[ToolCallPart("look_up", {})]), chooses("a"))
    made = Team("t", leader.model, members=[member("a")], mode="route", tools=[Tool(look_up)])
    assert await made.run(a_turn()) == "[hello]"
    assert returned(leader.asked[1]) == ["ask a"]


async def test_a_team_can_be_chosen_and_its_leader_sees_the_history() -> None:
    inner_leader = responses(tasks(("deep", "dig")), text("dug"))
    inner = Team("inner", inner_leader.model, members=[member("deep")])
    turn = new_turn(a_request(), None, context_of(a_past_run(1)), attempt=1)
    assert await Team("t", responses(chooses("inner")).model, members=[inner], mode="route").run(turn) == "dug"
    assert prompts(inner_leader.asked[0]) == ["question 1", "hello"]
    assert statuses(turn) == {"deep": RunStatus.COMPLETED, "inner": RunStatus.COMPLETED}


@pytest.mark.parametrize("tolerant", [False, True])
async def test_a_chosen_member_that_fails_fails_the_turn_for_nobody_else_answers(*, tolerant: bool) -> None:
    turn = a_turn()
    members = [member("a", failing(_BROKEN))]
    leader = responses(chooses("a")).model
    made = Team("t", leader, members=members, mode="route", tolerate_member_failures=tolerant)
    with pytest.raises(ModelFailed):
        await made.run(turn)
    assert statuses(turn) == {"a": RunStatus.ERROR}


# --- broadcast


async def test_all_members_get_the_input_side_by_side_and_the_leader_sums_up() -> None:
    leader = responses(text("in sum"))
    met = meeting(3)
    turn = new_turn(
        a_request(input=[{"type": "text", "text": "look"}, _PICTURE]), None, context_of(a_past_run(1)), attempt=1
    )
    members = [member(name, met) for name in ("c", "a", "b")]
    assert await Team("t", leader.model, members=members, mode="broadcast").run(turn) == "in sum"
    assert [run.member.id for run in turn.member_runs] == ["c", "a", "b"], "in the members' order"
    assert {run.status for run in turn.member_runs} == {RunStatus.COMPLETED}
    assert all(run.input == turn.parts for run in turn.member_runs)
    past, given = prompts(leader.asked[0])
    assert isinstance(given, list)
    assert (past, *given[:2]) == ("question 1", "look", BinaryContent(data=b"\x89PNG", media_type="image/png"))
    assert re.findall(r'member="(\w)"', given[2]) == ["c", "a", "b"]


async def test_the_leader_sees_each_answer_under_its_member_s_id_however_late_it_came() -> None:
    last_answered = asyncio.Event()

    async def first(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        await last_answered.wait()
        return text("from first")

    async def last(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        last_answered.set()
        return text("from last")

    leader = responses(text("x"))
    members = [member("first", FunctionModel(first)), member("last", FunctionModel(last))]
    turn = a_turn()
    await Team("t", leader.model, members=members, mode="broadcast").run(turn)
    (asked,) = prompts(leader.asked[0])
    assert str(asked).startswith("hello\n\n")
    assert '<answer member="first">\nfrom first\n</answer>\n<answer member="last">\nfrom last\n</answer>' in str(asked)
    assert [run.content for run in turn.member_runs] == ["from first", "from last"]


async def test_a_member_that_fails_ends_a_broadcast_and_the_others_are_stopped() -> None:
    turn = a_turn()
    leader = responses(text("x"))
    members = [member("slow", never_answering()), member("broken", failing(_BROKEN)), member("late", never_answering())]
    with pytest.raises(ModelFailed):
        await Team("t", leader.model, members=members, mode="broadcast").run(turn)
    assert statuses(turn) == {"slow": RunStatus.CANCELLED, "broken": RunStatus.ERROR, "late": RunStatus.CANCELLED}
    assert leader.asked == []


@pytest.mark.parametrize("mode", ["broadcast", "coordinate"])
async def test_where_failures_are_tolerated_the_leader_is_told_and_answers_all_the_same(mode: Any) -> None:
    leader = responses(text("x")) if mode == "broadcast" else responses(asks_all("x"), text("x"))
    members = [member("broken", failing(_BROKEN)), member("fine", says("all is well"))]
    turn = a_turn()
    await Team("t", leader.model, members=members, mode=mode, tolerate_member_failures=True).run(turn)
    seen = str([*prompts(leader.asked[-1]), *returned(leader.asked[-1])])
    assert "failed" in seen
    assert "all is well" in seen
    assert statuses(turn) == {"broken": RunStatus.ERROR, "fine": RunStatus.COMPLETED}
    assert turn.member_runs[0].content is None


async def test_whatever_a_member_raises_is_tolerated_and_told_without_its_text() -> None:
    def confused() -> str:
        raise LookupError("hunter2")

    broken = Agent(says("x"), name="broken", deps_type=Turn, instructions=confused)
    leader = responses(text("sum"))
    turn = a_turn()
    made = Team("t", leader.model, members=[member("fine"), broken], mode="broadcast", tolerate_member_failures=True)
    assert await made.run(turn) == "sum"
    (asked,) = prompts(leader.asked[0])
    assert "agent.broken raised LookupError" in str(asked)
    assert "hunter2" not in str(asked)
    failed = next(run for run in turn.member_runs if run.name == "broken")
    assert (failed.status, failed.error and failed.error.code) == (RunStatus.ERROR, ErrorCode.EXECUTOR_FAILED)


@pytest.mark.parametrize("mode", ["coordinate", "broadcast"])
async def test_a_tolerated_member_may_reach_a_limit_of_its_own_but_none_of_the_turn_s(mode: Any) -> None:
    three = UsageLimits(request_limit=3)
    inner = Team("inner", responses(tasks(("m", "x"))).model, members=[member("m")], usage_limits=three)
    leader = responses(*([tasks(("inner", "x"))] if mode == "coordinate" else []), text("sum"))
    made = Team("t", leader.model, members=[inner], mode=mode, tolerate_member_failures=True)
    assert await made.run(a_turn()) == "sum"

    given: dict[str, Any] = {"members": [inner], "mode": mode, "tolerate_member_failures": True}
    bounded = Team("t", leader.model, usage_limits=three, **given)
    with pytest.raises(UsageLimitReached):
        await bounded.run(a_turn())


async def test_a_request_limit_holds_for_members_whose_requests_are_under_way_at_once() -> None:
    asked = Recorded(lambda *_: text("x"))
    members = [member(f"m{number}", asked.model) for number in range(10)]
    made = Team("t", says("sum"), members=members, mode="broadcast", usage_limits=UsageLimits(request_limit=2))
    with pytest.raises(UsageLimitReached):
        await made.run(a_turn())
    assert len(asked.asked) <= 2


@pytest.mark.parametrize("limits", [None, UsageLimits(request_limit=100)])
async def test_a_limit_of_tool_calls_holds_within_a_nested_team_whatever_its_own_limits(
    limits: UsageLimits | None,
) -> None:
    called: list[int] = []
    many = ModelResponse(parts=[ToolCallPart("count", {}) for _ in range(10)])
    inner = Team(
        "inner",
        responses(many, text("x")).model,
        tools=[Tool(lambda: called.append(1), name="count")],
        usage_limits=limits,
    )
    made = Team("t", says("sum"), members=[inner], mode="broadcast", usage_limits=UsageLimits(tool_calls_limit=3))
    with pytest.raises(UsageLimitReached):
        await made.run(a_turn())
    assert not called


@pytest.mark.parametrize("limits", [None, UsageLimits(request_limit=100)])
async def test_a_limit_of_tokens_holds_for_the_last_answer_of_a_nested_team(limits: UsageLimits | None) -> None:
    inner = Team("inner", responses(text("x", tokens=(10_000, 1))).model, usage_limits=limits)
    leader = responses(ModelResponse(parts=[ToolCallPart("route_to_member", {"member_id": "inner"})]))
    tokens = UsageLimits(total_tokens_limit=100)
    with pytest.raises(UsageLimitReached):
        await Team("t", leader.model, members=[inner], mode="route", usage_limits=tokens).run(a_turn())


async def test_the_time_of_the_leader_s_tools_is_not_that_of_its_members() -> None:
    async def slowly(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        await asyncio.sleep(0.3)
        return text("found")

    leader = responses(tasks(("m", "x")), text("done"))
    turn = a_turn()
    await Team("t", leader.model, members=[member("m", FunctionModel(slowly))], tool_timeout=0.1).run(turn)
    assert [(run.status, run.content) for run in turn.member_runs] == [(RunStatus.COMPLETED, "found")]


@pytest.mark.parametrize("tolerant", [True, False])
async def test_a_tool_that_awaited_what_was_cancelled_has_failed(*, tolerant: bool) -> None:
    async def tool() -> str:
        raise asyncio.CancelledError

    calling = responses(ModelResponse(parts=[ToolCallPart("tool", {})]), text("x"))
    broken = Agent(calling.model, name="broken", deps_type=Turn, tools=[tool])
    leader = responses(tasks(("broken", "x")), text("done"))
    made = Team("t", leader.model, members=[broken], tolerate_member_failures=tolerant)
    if tolerant:
        assert await made.run(a_turn()) == "done"
    else:
        with pytest.raises(ToolFailed):
            await made.run(a_turn())


async def test_a_nested_team_has_a_state_to_begin_with_of_its_own() -> None:
    inner = Team("inner", says("x"), session_state={"cart": [], "lang": "en"})
    turn = a_turn(session_state={"lang": "de"})
    await Team("t", says("sum"), members=[inner], mode="broadcast", session_state={"seen": 0}).run(turn)
    assert turn.session_state == {"lang": "de", "seen": 0, "cart": []}


async def test_a_nested_team_has_its_own_time_and_may_fail_by_it() -> None:
    slow = Team("slow", never_answering(), timeout=0.05)
    with pytest.raises(TurnTimedOut, match=r"team\.slow ran longer than 0\.05 s"):
        await Team("t", says("sum"), members=[slow], mode="broadcast").run(a_turn())
    tolerant = Team("t", says("sum"), members=[slow], mode="broadcast", tolerate_member_failures=True)
    assert await tolerant.run(a_turn()) == "sum"


async def test_a_broadcast_can_be_a_member_of_a_team_that_coordinates() -> None:
    inner = Team("inner", says("summed up"), members=[member("a"), member("b")], mode="broadcast")
    leader = responses(tasks(("inner", "find it")), text("done"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[inner]).run(turn) == "done"
    assert returned(leader.asked[-1]) == ["summed up"]
    *deep, inner_run = turn.member_runs
    assert (inner_run.member, inner_run.parent_run_id) == (team("inner"), turn.run_id)
    assert [(run.member.id, run.content, run.parent_run_id) for run in deep] == [
        (name, "[find it]", inner_run.run_id) for name in ("a", "b")
    ]


# --- coordinate


async def test_a_leader_can_give_all_its_members_one_task_at_once() -> None:
    leader = responses(asks_all("find it"), text("done"))
    met = meeting(2, "found")
    turn = a_turn()
    assert await Team("t", leader.model, members=[member("b", met), member("a", met)]).run(turn) == "done"
    (answers,) = returned(leader.asked[-1])
    assert answers == '<answer member="b">\nfound\n</answer>\n<answer member="a">\nfound\n</answer>'
    assert [(run.member.id, run.input) for run in turn.member_runs] == [("b", "find it"), ("a", "find it")]


async def test_a_member_without_a_model_uses_its_leader_s() -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not info.function_tools:
            return text("found")
        return text("done") if returned(messages) else tasks(("plain", "find it"))

    plain: Agent[Turn, str] = Agent(name="plain", deps_type=Turn)
    turn = a_turn()
    assert await Team("t", FunctionModel(answer), members=[plain]).run(turn) == "done"
    assert [(run.member.id, run.content) for run in turn.member_runs] == [("plain", "found")]


async def test_one_member_twice_at_once_has_two_runs_even_if_the_provider_repeats_its_call_ids() -> None:
    turn = a_turn()
    asked = tasks(("a", "one"), ("a", "two"), ids=["call_0", "call_1"])
    leader = responses(asked, asked, text("done"))
    await Team("t", leader.model, members=[member("a", meeting(2))]).run(turn)
    assert len({run.run_id for run in turn.member_runs}) == len(turn.member_runs) == 4


# --- limits


async def test_a_usage_limit_is_one_of_the_leader_and_all_its_members() -> None:
    turn = a_turn()
    leader = responses(tasks(("a", "x")), tasks(("a", "y")), text("done"))
    members = [member("a", says("x"))]
    limits = UsageLimits(request_limit=3)
    made = Team("t", leader.model, members=members, usage_limits=limits, tolerate_member_failures=True)
    with pytest.raises(UsageLimitReached):
        await made.run(turn)
    assert turn.usage.model_requests == 3
    assert [run.status for run in turn.member_runs] == [RunStatus.COMPLETED, RunStatus.ERROR]


async def test_a_nested_team_s_own_limit_is_of_its_part_of_the_turn_alone() -> None:
    inner_leader = responses(tasks(("deep", "x")), text("dug", tokens=(5, 5)))
    inner = Team("inner", inner_leader.model, members=[member("deep")], usage_limits=UsageLimits(request_limit=3))
    leader = responses(tasks(("inner", "x")), tasks(("inner", "y")), text("done"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[inner]).run(turn) == "done"
    assert turn.usage.model_requests == 9, "3 of its own each time"


async def test_a_nested_team_that_reaches_its_own_limit_fails_and_what_it_spent_is_counted() -> None:
    endless = responses(tasks(("deep", "x"), tokens=(1_000, 0))).model
    inner = Team("inner", endless, members=[member("deep", says("x"))], usage_limits=UsageLimits(request_limit=3))
    turn = a_turn()
    with pytest.raises(UsageLimitReached):
        await Team("t", responses(tasks(("inner", "x"))).model, members=[inner]).run(turn)
    assert turn.usage.model_requests == 4
    assert turn.usage.input_tokens == 10 + 2 * 1_000 + 10
    assert (turn.member_runs[-1].member, turn.member_runs[-1].status) == (team("inner"), RunStatus.ERROR)


@pytest.mark.parametrize("mode", ["coordinate", "route"])
async def test_a_nested_team_s_own_limit_does_not_lift_the_one_above_it(mode: Any) -> None:
    """Its leader asks four times; with the outer leader's requests that is more than the whole turn may."""
    busy = responses(*[tasks(("deep", "x"))] * 3, text("dug")).model
    inner = Team("inner", busy, members=[member("deep", says("x"))], usage_limits=UsageLimits(request_limit=50))
    outer = responses(chooses("inner")) if mode == "route" else responses(tasks(("inner", "x")), text("done"))
    turn = a_turn()
    with pytest.raises(UsageLimitReached):
        await Team("t", outer.model, members=[inner], mode=mode, usage_limits=UsageLimits(request_limit=3)).run(turn)
    assert turn.usage.model_requests == 3


async def test_nor_do_those_of_several_nested_teams_side_by_side() -> None:
    """Each of the three would ask nine times; when five requests are made, two more may be under way."""

    def busy(name: str) -> Team:
        leader = responses(*[tasks(("deep", "x"))] * 4, text("dug")).model
        return Team(name, leader, members=[member("deep")], usage_limits=UsageLimits(request_limit=50))

    turn = a_turn()
    members = [busy(name) for name in ("a", "b", "c")]
    with pytest.raises(UsageLimitReached):
        limits = UsageLimits(request_limit=5)
        await Team("t", says("x"), members=members, mode="broadcast", usage_limits=limits).run(turn)
    assert turn.usage.model_requests <= 5 + 2


@pytest.mark.parametrize("limit", [2, None])
async def test_model_concurrency_bounds_the_requests_under_way(limit: int | None) -> None:
    model, under_way = crowd()
    members: list[Agent[Turn, str]] = [Agent(name=f"m{number}", deps_type=Turn) for number in range(6)]
    await Team("t", model, members=members, mode="broadcast", model_concurrency=limit).run(a_turn())
    assert len(under_way) == 7
    assert max(under_way) == limit or (limit is None and max(under_way) == 6)


async def test_two_teams_can_share_one_bound() -> None:
    model, under_way = crowd()
    bound = ConcurrencyLimiter(max_running=1)
    teams = [Team(name, model, model_concurrency=bound) for name in ("one", "other")]
    await asyncio.gather(*(made.run(a_turn()) for made in teams for _ in range(3)))
    assert (len(under_way), max(under_way)) == (6, 1)


async def test_another_model_answers_for_the_leader_and_its_members_where_theirs_fails() -> None:
    spare = responses(text("x"), text("the spare one"))
    plain: Agent[Turn, str] = Agent(name="plain", deps_type=Turn)
    models = [failing(ModelHTTPError(500, "told")), spare.model]
    made = Team("t", failing(_BROKEN), members=[plain], mode="broadcast", fallback_models=models)
    assert await made.run(a_turn()) == "x"
    assert len(spare.asked) == 2


async def test_a_turn_that_takes_longer_than_its_team_allows_has_timed_out() -> None:
    turn = a_turn()
    members = [member("slow", never_answering()), member("quick")]
    with pytest.raises(TurnTimedOut) as failed:
        await Team("t", says("x"), members=members, mode="broadcast", timeout=0.1).run(turn)
    assert failed.value.is_retryable
    assert statuses(turn) == {"slow": RunStatus.CANCELLED, "quick": RunStatus.COMPLETED}
    assert turn.usage.model_requests == 1, "the quick member's"
