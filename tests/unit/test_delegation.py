"""Delegation: a leader gives members tasks, and their runs are kept below its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, RetryPromptPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

from schemas.replies import RunStatus
from tests.unit.examples import a_past_run, a_request, a_turn, agent, context_of, team
from tests.unit.models import member, prompts, responses, says, tasks, text
from worker.errors import ModelFailed
from worker.executors.attempt import new_turn
from worker.executors.turn import MemberRun, Turn
from worker.team.members import members_first
from worker.team.team import Team


def _returned(messages: Sequence[ModelMessage]) -> list[object]:
    """What the leader was given back for its tasks."""
    return [
        part.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart | RetryPromptPart)
    ]


async def test_a_member_s_answer_is_given_to_the_leader_who_then_answers() -> None:
    leader = responses(tasks(("finder", "find it")), text("found"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[member("finder")]).run(turn) == "found"
    assert _returned(leader.asked[-1]) == ["[find it]"]
    (run,) = turn.member_runs
    assert (run.member, run.name, run.parent_run_id) == (agent("finder"), "finder", turn.run_id)
    assert (run.input, run.content, run.status) == ("find it", "[find it]", RunStatus.COMPLETED)
    assert run.run_id != turn.run_id


async def test_a_member_sees_its_task_and_nothing_of_the_conversation() -> None:
    finder = responses(text("x"))
    leader = responses(tasks(("finder", "find it")), text("found"))
    turn = new_turn(a_request(input="secret question"), None, context_of(a_past_run(1)), attempt=1)
    await Team("t", leader.model, members=[member("finder", finder.model)], instructions="secret").run(turn)
    (messages,) = finder.asked
    assert len(messages) == 1
    assert prompts(messages) == ["find it"]
    assert finder.infos[0].instructions is None


async def test_the_leader_is_told_its_members_and_how_to_give_them_tasks() -> None:
    leader = responses(text("x"))
    described = member("finder", description="Finds things.")
    await Team("t", leader.model, members=[described, Team("inner", says("x"))], instructions="Be brief.").run(a_turn())
    instructions = leader.infos[0].instructions or ""
    assert "Be brief." in instructions
    assert "- finder: Finds things." in instructions
    assert "- inner: inner" in instructions
    required = {tool.name: tool.parameters_json_schema["required"] for tool in leader.infos[0].function_tools}
    assert required == {"delegate_task": ["member_id", "task"], "delegate_to_all": ["task"]}


async def test_an_unknown_member_is_told_to_the_leader_who_may_correct_itself() -> None:
    leader = responses(tasks(("nobody", "find it")), tasks(("finder", "find it")), text("found"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[member("finder")]).run(turn) == "found"
    told = _returned(leader.asked[1])
    assert "nobody" in str(told)
    assert "finder" in str(told)
    assert [run.member for run in turn.member_runs] == [agent("finder")]


async def test_several_tasks_at_once_are_all_done() -> None:
    leader = responses(tasks(("a", "one"), ("b", "two"), ("a", "three")), text("done"))
    turn = a_turn()
    await Team("t", leader.model, members=[member("a"), member("b")]).run(turn)
    assert sorted(run.input for run in turn.member_runs) == ["one", "three", "two"]
    assert {run.status for run in turn.member_runs} == {RunStatus.COMPLETED}
    assert len({run.run_id for run in turn.member_runs}) == 3


async def test_the_tokens_of_members_at_every_depth_are_counted_once() -> None:
    inner_leader = responses(tasks(("deep", "x"), tokens=(1_000, 100)), text("inner", tokens=(2_000, 200)))
    deep = member("deep", responses(text("deep", tokens=(10_000, 1_000))).model)
    inner = Team("inner", inner_leader.model, members=[deep])
    leader = responses(tasks(("inner", "x"), ("flat", "x"), tokens=(1, 1)), text("done", tokens=(2, 2)))
    flat = member("flat", responses(text("flat", tokens=(100_000, 10_000))).model)
    turn = a_turn()
    await Team("t", leader.model, members=[inner, flat]).run(turn)
    usage = turn.usage
    assert (usage.input_tokens, usage.output_tokens) == (113_003, 11_303)
    assert usage.model_requests == 6
    assert usage.tool_calls == 3


async def test_a_team_can_be_a_member_and_its_members_runs_are_below_its_own() -> None:
    inner = Team("inner", responses(tasks(("deep", "dig")), text("dug")).model, members=[member("deep")])
    leader = responses(tasks(("inner", "do it")), text("done"))
    turn = a_turn()
    assert await Team("t", leader.model, members=[inner]).run(turn) == "done"
    deep_run, inner_run = turn.member_runs
    assert (inner_run.member, inner_run.parent_run_id, inner_run.content) == (team("inner"), turn.run_id, "dug")
    assert (deep_run.member, deep_run.parent_run_id, deep_run.content) == (agent("deep"), inner_run.run_id, "[dig]")


async def test_a_member_sees_the_turn_under_its_own_run_id_and_its_state_is_the_turn_s() -> None:
    seen: list[tuple[str, str, str]] = []
    worker = Agent(responses(tasks(), text("x")).model, name="worker", deps_type=Turn)

    @worker.instructions
    def look(context: RunContext[Turn]) -> str:
        seen.append((context.deps.run_id, context.deps.input, context.deps.session_id))
        context.deps.session_state["member"] = "was here"
        return ""

    worker.model = says("x")
    turn = a_turn()
    await Team("t", responses(tasks(("worker", "work")), text("done")).model, members=[worker]).run(turn)
    assert seen == [(turn.member_runs[0].run_id, "work", "s1")]
    assert turn.session_state == {"member": "was here"}
    assert (turn.run_id, turn.input) == ("r1", "hello")


async def test_a_member_s_run_has_the_same_id_in_every_attempt_and_another_in_another_run() -> None:
    async def run_ids(run_id: str, asked: str = "hello") -> list[str]:
        leader = responses(tasks(("a", "x"), ids=["call-1"]), tasks(("a", "y"), ids=["call-2"]), text("done"))
        turn = a_turn(run_id=run_id, input=asked)
        await Team("t", leader.model, members=[member("a")]).run(turn)
        return [run.run_id for run in turn.member_runs]

    first, again, other = await run_ids("r1"), await run_ids("r1"), await run_ids("r2")
    assert first == again
    assert len({*first, *other}) == 4
    assert not {*first} & {*await run_ids("r1", "else")}, "who guesses a run_id must not be able to take its members'"


async def test_member_runs_have_ids_of_their_own_even_where_the_provider_repeats_its_call_ids() -> None:
    """Two runs of one id could never be committed: the turn would be claimed and taken again without end."""
    leader = responses(tasks(("a", "x"), ids=["call_0"]), tasks(("a", "y"), ids=["call_0"]), text("done"))
    turn = a_turn()
    await Team("t", leader.model, members=[member("a")]).run(turn)
    assert len({run.run_id for run in turn.member_runs}) == 2


async def test_structured_output_of_a_member_is_json() -> None:
    class City(BaseModel):
        name: str

    finder: Agent[Turn, City] = Agent(
        TestModel(custom_output_args={"name": "Paris"}), name="finder", deps_type=Turn, output_type=City
    )
    leader = responses(tasks(("finder", "x")), text("done"))
    turn = a_turn()
    await Team("t", leader.model, members=[finder]).run(turn)
    assert turn.member_runs[0].content == {"name": "Paris"}
    assert _returned(leader.asked[-1]) == ['{"name":"Paris"}']


async def test_what_jsonb_refuses_in_a_member_s_answer_is_replaced() -> None:
    leader = responses(tasks(("finder", "x")), text("done"))
    turn = a_turn()
    await Team("t", leader.model, members=[member("finder", says("a\x00b\ud800"))]).run(turn)
    assert turn.member_runs[0].content == "a\ufffdb\ufffd"


async def test_a_member_that_fails_fails_the_turn_and_is_kept_as_an_error() -> None:
    def fails(_: list[ModelMessage], __: object) -> ModelResponse:
        raise LookupError("no")

    turn = a_turn()
    leader = responses(tasks(("broken", "x")), text("done"))
    with pytest.raises(ModelFailed):
        await Team("t", leader.model, members=[member("broken", FunctionModel(fails))]).run(turn)
    (run,) = turn.member_runs
    assert (run.status, run.content) == (RunStatus.ERROR, None)
    assert turn.usage.input_tokens == 10, "the leader's tokens were spent"


def _run(run_id: str, parent: str) -> MemberRun:
    return MemberRun(run_id, parent, agent("a"), "a", "x", 0)


def test_members_come_before_those_they_belong_to_and_siblings_stay_in_order() -> None:
    runs = [_run("1", "r"), _run("1.1", "1"), _run("2", "r"), _run("1.2", "1"), _run("2.1", "2"), _run("2.1.1", "2.1")]
    assert [run.run_id for run in members_first(runs)] == ["1.1", "1.2", "1", "2.1.1", "2.1", "2"]
    assert members_first([]) == []


@given(st.lists(st.integers(-1, 20), max_size=20), st.randoms(use_true_random=False))
def test_any_tree_of_runs_is_ordered_without_losing_one(parents: list[int], shuffle: random.Random) -> None:
    runs = [
        _run(str(number), str(parent) if parent < number and parent >= 0 else "r")
        for number, parent in enumerate(parents)
    ]
    shuffle.shuffle(runs)
    ordered = members_first(runs)
    places = {run.run_id: place for place, run in enumerate(ordered)}
    assert len(ordered) == len(places) == len(runs)
    assert all(places[run.run_id] < places[run.parent_run_id] for run in runs if run.parent_run_id != "r")
