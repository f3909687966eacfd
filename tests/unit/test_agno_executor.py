"""Agno's teams and agents as executors: what a turn gives them, and what they leave of it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
from agno.agent.followup import FollowupConfig
from agno.db.in_memory import InMemoryDb
from agno.exceptions import InputCheckError, ModelProviderError
from agno.learn import LearningMachine
from agno.models.message import Message
from agno.run import RunContext
from agno.tools.function import Function
from agno.workflow import Parallel, Router, Step, StepInput, StepOutput, Workflow
from pydantic import BaseModel
from structlog.testing import capture_logs
from typing_extensions import override

from schemas.errors import ErrorCode
from schemas.ids import SessionType, Target
from schemas.replies import RunStatus
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in, said, told
from tests.unit.examples import a_turn
from worker.agno.executor import AgnoExecutor
from worker.agno.logs import _cut
from worker.errors import SummaryRejected, TurnFailed
from worker.executors.turn import PastRun, Turn
from worker.operations.tracebacks import LEFT_OUT

PAST = (PastRun("p1", "my name is Ada", "hello Ada", 1), PastRun("p2", "what is 1+1?", "2", 2))


def _stored(past: PastRun, **more: Any) -> dict[str, Any]:
    """A run as Agno stores it."""
    return {
        "run_id": past.run_id,
        "team_id": "t1",
        "status": "COMPLETED",
        "input": {"input_content": past.input},
        "content": past.content,
        "created_at": past.created_at,
        "messages": [{"role": "user", "content": past.input}, {"role": "assistant", "content": past.content}],
        **more,
    }


def _lookup(messages: list[Message]) -> Any:
    """Ask the tool `lookup`, and answer with what it returned."""
    return " ".join(results_in(messages)) or calls(("lookup", {"what": "tea"}))


async def test_the_answer_and_what_it_used_are_the_turn_s() -> None:
    turn = a_turn()
    executor = AgnoExecutor(a_team(Scripted("Paris", tokens=(100, 20)), name="Capital"))
    assert executor.target == Target(type=SessionType.TEAM, id="t1")
    assert (executor.name, executor.model_name) == ("Capital", "Test:scripted")
    assert await executor.run(turn) == "Paris"
    assert (turn.usage.input_tokens, turn.usage.output_tokens, turn.usage.model_requests) == (100, 20, 1)


async def test_a_team_without_history_is_not_given_any() -> None:
    executor = AgnoExecutor(a_team())
    assert executor.history_runs == 0


@pytest.mark.parametrize("whole", [True, False], ids=["as stored", "as told"])
async def test_the_last_runs_are_shown_as_its_own_settings_say(*, whole: bool) -> None:
    model = Scripted()
    executor = AgnoExecutor(a_team(model, add_history_to_context=True, num_history_runs=1))
    turn = a_turn()
    turn.history = PAST
    turn.whole_history = tuple(map(_stored, PAST)) if whole else ()
    await executor.run(turn)
    assert executor.history_runs == 1
    assert said(model.asked[0]) == ["user: what is 1+1?", "assistant: 2", "user: hello"]


async def test_tool_calls_of_earlier_runs_are_part_of_the_history() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "how much?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3 EUR", "tool_call_id": "c1"},
        {"role": "assistant", "content": "three"},
    ]
    model, turn = Scripted(), a_turn()
    turn.history = (PastRun("p1", "how much?", "three", 1),)
    turn.whole_history = (_stored(turn.history[0], messages=messages),)
    await AgnoExecutor(a_team(model, add_history_to_context=True)).run(turn)
    assert [message.role for message in model.asked[0]][1:] == ["user", "assistant", "tool", "assistant", "user"]
    assert model.asked[0][2].tool_calls == [call]


async def test_a_run_that_agno_can_t_read_is_shown_as_what_was_asked_and_answered() -> None:
    model, turn = Scripted(), a_turn()
    turn.history = PAST
    turn.whole_history = (_stored(PAST[0], messages=[{"no": "role"}]), _stored(PAST[1]))
    await AgnoExecutor(a_team(model, add_history_to_context=True)).run(turn)
    assert said(model.asked[0])[:2] == ["user: my name is Ada", "assistant: hello Ada"]


async def test_a_member_s_history_is_its_own() -> None:
    member = Scripted("member says")
    model = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("a1", "again")))
    executor = AgnoExecutor(a_team(model, an_agent(member, add_history_to_context=True)))
    assert executor.history_runs == 3
    turn = a_turn()
    turn.history = PAST[:1]
    inner = {
        "run_id": "m1",
        "agent_id": "a1",
        "parent_run_id": "p1",
        "status": "COMPLETED",
        "messages": [{"role": "user", "content": "task one"}, {"role": "assistant", "content": "done one"}],
    }
    turn.whole_history = (inner, _stored(PAST[0]))
    await executor.run(turn)
    assert said(member.asked[0]) == ["user: task one", "assistant: done one", "user: again"]


async def test_the_state_is_what_tools_have_made_of_it() -> None:
    def lookup(run_context: RunContext, what: str) -> str:
        """Look up."""
        assert run_context.session_state is not None
        run_context.session_state["seen"] = [*run_context.session_state["seen"], what]
        return f"{what} found"

    turn = a_turn(session_state={"seen": ["milk"], "kept": {"a": 1}})
    assert await AgnoExecutor(a_team(Scripted(_lookup), tools=[lookup])).run(turn) == "tea found"
    assert turn.session_state == {"seen": ["milk", "tea"], "kept": {"a": 1}}
    assert turn.usage.tool_calls == 1


async def test_the_state_begins_with_the_team_s_own_and_what_is_stored_goes_over_it() -> None:
    turn = a_turn(session_state={"b": 20})
    team = a_team(session_state={"a": 1, "b": 2}, add_session_state_to_context=True)
    await AgnoExecutor(team).run(turn)
    assert turn.session_state == {"a": 1, "b": 20}


async def test_a_tool_may_name_the_session() -> None:
    async def lookup(team: Any, what: str) -> str:
        """Look up."""
        await team.db.rename_session(session_id="s1", session_type="team", session_name=f"about {what}")
        return "named"

    turn = a_turn()
    await AgnoExecutor(a_team(Scripted(_lookup), tools=[lookup])).run(turn)
    assert turn.session_name == "about tea"


async def test_what_is_known_of_the_session_is_given_and_its_summary_is_shown() -> None:
    model, turn = Scripted(), a_turn(user_id="u1", metadata={"channel": "web"})
    turn.summary = "Ada likes tea"
    seen: list[Any] = []

    def instructions(run_context: RunContext) -> str:
        seen.append((run_context.user_id, run_context.session_id, run_context.run_id, run_context.metadata))
        return "be brief"

    team = a_team(model, instructions=instructions, add_session_summary_to_context=True)
    await AgnoExecutor(team).run(turn)
    assert seen == [("u1", "s1", "r1", {"channel": "web"})]
    assert "Ada likes tea" in told(model.asked[0])


async def test_summaries_are_written_beside_the_turn_by_the_team_s_own_manager() -> None:
    def answer(messages: list[Message]) -> Any:
        if "<conversation>" in told(messages):
            return '{"summary": "Ada asked for 1+1", "topics": ["sums"]}'
        return "fine"

    model, turn = Scripted(answer), a_turn()
    executor = AgnoExecutor(a_team(model, enable_session_summaries=True))
    turn.history, turn.summary = PAST[1:], "Ada is here"
    await executor.run(turn)
    assert len(model.asked) == 1
    assert "Ada is here" in told(model.asked[0])
    assert said(model.asked[0])[:2] == ["user: what is 1+1?", "assistant: 2"]  # not in the summary yet
    assert executor.summarizer is not None
    written = await executor.summarizer.summarize("Ada is here", PAST[1:])
    assert (written.text, written.topics, written.runs) == ("Ada asked for 1+1", ("sums",), 1)
    assert (written.usage.input_tokens, written.usage.model_requests) == (10, 1)
    assert "Assistant: Ada is here" in told(model.asked[1])
    assert "User: what is 1+1?" in told(model.asked[1])


@pytest.mark.parametrize("status", [400, 413])
async def test_a_summary_that_the_provider_won_t_have_is_told_apart(status: int) -> None:
    error = ModelProviderError("too long", status_code=status, model_id="gpt")
    executor = AgnoExecutor(a_team(Scripted(lambda _: error), enable_session_summaries=True))
    assert executor.summarizer is not None
    with pytest.raises(SummaryRejected) as rejected:
        await executor.summarizer.summarize(None, PAST)
    assert rejected.value.runs == 2


async def test_images_and_files_are_passed_on() -> None:
    png, text = base64.b64encode(b"\x89PNG").decode(), base64.b64encode(b"notes").decode()
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "binary", "media_type": "image/png", "data": png},
        {"type": "binary", "media_type": "text/plain", "data": text},
    ]
    model, turn = Scripted(), a_turn(input=parts)
    await AgnoExecutor(a_team(model)).run(turn)
    asked = model.asked[0][-1]
    assert asked.content == "what is this?"
    assert asked.images is not None
    assert asked.files is not None
    assert [(image.content, image.mime_type) for image in asked.images] == [(b"\x89PNG", "image/png")]
    assert [file.content for file in asked.files] == [b"notes"]
    assert turn.details["input"]["images"][0]["content"] == png


async def test_a_file_of_a_type_that_agno_has_not_is_refused_by_its_name() -> None:
    parts = [{"type": "binary", "media_type": "model/gltf+json", "data": "AAAA"}]
    with pytest.raises(TurnFailed, match=r"model/gltf\+json") as refused:
        await AgnoExecutor(a_team()).run(a_turn(input=parts))
    assert refused.value.code is ErrorCode.MODEL_ERROR


class City(BaseModel):
    name: str
    people: int


async def test_structured_output_is_json() -> None:
    turn = a_turn()
    team = a_team(Scripted('{"name": "Paris", "people": 2000000}'), output_schema=City, use_json_mode=True)
    answer: Any = await AgnoExecutor(team).run(turn)
    assert answer == City(name="Paris", people=2_000_000)
    assert turn.details["content_type"] == "City"


async def test_a_member_s_part_is_a_run_of_its_own() -> None:
    def lookup(what: str) -> str:
        """Look up."""
        return f"{what} found"

    model = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("a1", "find tea")))
    turn = a_turn(user_id="u1")
    answer = await AgnoExecutor(a_team(model, an_agent(Scripted(_lookup), tools=[lookup]))).run(turn)
    assert answer == "tea found"
    (run,) = turn.member_runs
    assert (run.member, run.parent_run_id, run.input) == (Target(type=SessionType.AGENT, id="a1"), "r1", "find tea")
    assert (run.content, run.status) == ("tea found", RunStatus.COMPLETED)
    assert [message["role"] for message in run.details["messages"]][-3:] == ["assistant", "tool", "assistant"]
    assert (turn.usage.model_requests, turn.usage.tool_calls, turn.usage.input_tokens) == (4, 2, 40)


async def test_a_team_within_a_team_and_its_member_each_have_a_run_the_inner_first() -> None:
    def asks(member: str) -> Scripted:
        return Scripted(lambda messages: " ".join(results_in(messages)) or delegates((member, f"for {member}")))

    inner = a_team(asks("a1"), an_agent(Scripted("deep")), id="t2", name="t2")
    turn = a_turn()
    assert await AgnoExecutor(a_team(asks("t2"), inner)).run(turn) == "deep"
    assert [(run.member.id, run.input) for run in turn.member_runs] == [("a1", "for a1"), ("t2", "for t2")]
    assert turn.member_runs[0].parent_run_id == turn.member_runs[1].run_id
    assert turn.member_runs[1].parent_run_id == "r1"


@pytest.mark.parametrize("mode", ["route", "broadcast"])
async def test_modes_are_agno_s_own(mode: str) -> None:
    def lead(messages: list[Message]) -> Any:
        found = results_in(messages)
        if found:
            return " & ".join(found)
        call = ("delegate_task_to_members", {"task": "go"}) if mode == "broadcast" else None
        return calls(call) if call else delegates(("b", "go"))

    members = [an_agent(Scripted(f"{name} did it"), id=name, name=name) for name in ("a", "b")]
    turn = a_turn()
    answer = await AgnoExecutor(a_team(Scripted(lead), *members, mode=mode)).run(turn)
    if mode == "route":
        assert answer == "b did it"
        assert [run.member.id for run in turn.member_runs] == ["b"]
    else:
        assert answer == "Agent a: a did itAgent b: b did it"
        assert sorted(run.member.id for run in turn.member_runs) == ["a", "b"]


async def test_an_agent_alone() -> None:
    turn = a_turn(agent_id="a1")
    executor = AgnoExecutor(an_agent(Scripted("fine"), session_state={"n": 1}))
    assert executor.target == Target(type=SessionType.AGENT, id="a1")
    assert await executor.run(turn) == "fine"
    assert turn.session_state == {"n": 1}
    assert turn.details["agent_id"] == "a1"


async def test_a_workflow_s_steps_are_runs_and_results() -> None:
    def shout(step_input: StepInput, run_context: RunContext) -> StepOutput:
        assert run_context.session_state is not None
        run_context.session_state["shouted"] = True
        return StepOutput(content=str(step_input.previous_step_content).upper())

    workflow = Workflow(
        id="w1",
        name="w1",
        steps=[Step(name="find", agent=an_agent(Scripted("tea"))), Step(name="shout", executor=shout)],
        telemetry=False,
    )
    turn = a_turn(workflow_id="w1")
    executor = AgnoExecutor(workflow)
    assert executor.target == Target(type=SessionType.WORKFLOW, id="w1")
    assert await executor.run(turn) == "TEA"
    assert [(step.name, step.content, step.status) for step in turn.step_results] == [
        ("find", "tea", RunStatus.COMPLETED),
        ("shout", "TEA", RunStatus.COMPLETED),
    ]
    (run,) = turn.member_runs
    assert (run.member.id, run.content, run.run_id) == ("a1", "tea", turn.step_results[0].run_id)
    assert turn.session_state["shouted"] is True


async def test_a_workflow_sees_its_earlier_runs() -> None:
    model, turn = Scripted("again"), a_turn(workflow_id="w1")
    workflow = Workflow(
        id="w1", steps=[an_agent(model)], add_workflow_history_to_steps=True, num_history_runs=5, telemetry=False
    )
    executor = AgnoExecutor(workflow)
    assert executor.history_runs == 5
    turn.history = PAST
    await executor.run(turn)
    assert "my name is Ada" in said(model.asked[0])[0]


async def test_an_agent_in_a_parallel_of_a_workflow_is_copied_too() -> None:
    db = InMemoryDb()
    agents = [an_agent(Scripted(name), id=name, name=name, db=db) for name in ("a", "b")]
    workflow = Workflow(id="w1", steps=[Parallel(*agents, name="both")], telemetry=False)
    turn = a_turn(workflow_id="w1")
    await AgnoExecutor(workflow).run(turn)
    assert {run.member.id for run in turn.member_runs} == {"a", "b"}
    assert db.get_sessions() == []


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (400, False), (429, True), (503, True)], ids=str)
async def test_a_model_s_failure_has_its_code_and_not_its_text(status: int, *, retryable: bool) -> None:
    error = ModelProviderError("key sk-123 is wrong", status_code=status, model_id="gpt")
    turn = a_turn()
    with pytest.raises(TurnFailed) as failed:
        await AgnoExecutor(a_team(Scripted(lambda _: error))).run(turn)
    assert failed.value.code is ErrorCode.MODEL_ERROR
    assert failed.value.message == f"the request to the model gpt failed with status {status}"
    assert failed.value.is_retryable is retryable
    assert "sk-123" not in str({**turn.details, "content": None})


async def test_a_member_s_failure_is_the_member_s() -> None:
    model = Scripted(lambda messages: "so be it" if results_in(messages) else delegates(("a1", "go")))
    turn = a_turn()
    member = an_agent(Scripted(lambda _: ModelProviderError("secret", model_id="gpt")))
    assert await AgnoExecutor(a_team(model, member)).run(turn) == "so be it"
    (run,) = turn.member_runs
    assert (run.status, run.content) == (RunStatus.ERROR, None)
    assert run.error is not None
    assert run.error.code is ErrorCode.MODEL_ERROR


async def test_a_member_s_failure_is_not_the_answer_of_a_team_that_passes_it_on() -> None:
    error = ModelProviderError("key sk-123 is wrong", status_code=401, model_id="gpt")
    team = a_team(Scripted(lambda _: delegates(("a1", "go"))), an_agent(Scripted(lambda _: error)), mode="route")
    with pytest.raises(TurnFailed, match="failed with status 401"):
        await AgnoExecutor(team).run(a_turn())


async def test_a_leader_that_quotes_a_member_s_failure_quotes_its_code() -> None:
    error = ModelProviderError("key sk-123 is wrong", status_code=401, model_id="gpt")
    lead = Scripted(
        lambda messages: f"sorry: {results_in(messages)[0]}" if results_in(messages) else delegates(("a1", "go"))
    )
    answer = await AgnoExecutor(a_team(lead, an_agent(Scripted(lambda _: error)))).run(a_turn())
    assert answer == "sorry: the request to the model gpt failed with status 401"


async def test_a_step_whose_model_failed_is_not_the_workflow_s_answer() -> None:
    error = ModelProviderError("key sk-123 is wrong", status_code=401, model_id="gpt")
    workflow = Workflow(id="w1", steps=[Step(name="ask", agent=an_agent(Scripted(lambda _: error)))], telemetry=False)
    turn = a_turn(workflow_id="w1")
    with pytest.raises(TurnFailed, match="failed with status 401"):
        await AgnoExecutor(workflow).run(turn)
    assert [(step.name, step.content, step.status) for step in turn.step_results] == [("ask", None, RunStatus.ERROR)]


async def test_an_answer_may_have_the_words_of_a_failure_that_was_made_good() -> None:
    answers = iter([ModelProviderError("Not Found", status_code=500), "The page said: Not Found (404)."])
    turn = a_turn()
    executor = AgnoExecutor(an_agent(Scripted(lambda _: next(answers)), retries=1, delay_between_retries=0))
    assert await executor.run(turn) == "The page said: Not Found (404)."


async def test_an_introduction_begins_the_session() -> None:
    model = Scripted()
    executor = AgnoExecutor(a_team(model, introduction="I am Ada.", add_history_to_context=True, num_history_runs=2))
    first, third = a_turn(), a_turn()
    third.history = PAST
    await executor.run(first)
    await executor.run(third)
    assert said(model.asked[0]) == ["assistant: I am Ada.", "user: hello"]
    assert "assistant: I am Ada." not in said(model.asked[1])
    assert first.member_runs == []


async def test_a_router_that_names_a_step_by_its_object_is_given_the_turn_s_copy() -> None:
    agents = [an_agent(Scripted(name), id=name, name=name) for name in ("a", "b")]
    steps = [Step(name=agent.name, agent=agent) for agent in agents]

    def chosen(step_input: StepInput) -> list[Step]:
        return [steps[0] if step_input.input == "the first" else steps[1]]

    router = Router(name="choose", choices=steps, selector=chosen)
    turn = a_turn(workflow_id="w1")
    assert await AgnoExecutor(Workflow(id="w1", steps=[router], telemetry=False)).run(turn) == "b"
    assert turn.usage.model_requests == 1
    assert agents[1].workflow_id is None


async def test_a_guardrail_s_refusal_says_which() -> None:
    def no(run_input: Any) -> None:
        raise InputCheckError(f"never {run_input.input_content}", check_trigger="prompt_injection")

    with pytest.raises(TurnFailed, match="a check refused the input") as refused:
        await AgnoExecutor(a_team(pre_hooks=[no])).run(a_turn(input="secret"))
    assert refused.value.code is ErrorCode.EXECUTOR_FAILED
    assert "secret" not in refused.value.message


async def test_an_exception_of_its_own_code_is_named_by_its_type() -> None:
    def broken() -> str:
        raise KeyError("secret")

    with pytest.raises(TurnFailed, match=r"team\.t1 raised KeyError$"):
        await AgnoExecutor(a_team(instructions=broken)).run(a_turn())


async def test_a_run_that_waits_for_a_decision_ends_as_failed_and_says_so() -> None:
    pay = Function(name="pay", entrypoint=lambda: "paid", requires_confirmation=True)
    team = a_team(Scripted(lambda _: calls(("pay", {}))), tools=[pay])
    with pytest.raises(TurnFailed, match="waits for a decision") as paused:
        await AgnoExecutor(team).run(a_turn())
    assert paused.value.code is ErrorCode.EXECUTOR_FAILED


async def test_what_is_neither_session_nor_run_stays_in_its_own_database() -> None:
    db = InMemoryDb()
    remember = calls(("add_memory", {"memory": "likes tea", "topics": ["drinks"]}))

    def answer(messages: list[Message]) -> Any:
        if "Memory Manager" in told(messages):
            return "done" if results_in(messages) else remember
        return "noted"

    turn = a_turn(user_id="u1")
    team = a_team(Scripted(answer), db=db, update_memory_on_run=True, add_history_to_context=True)
    assert await AgnoExecutor(team).run(turn) == "noted"
    assert [memory.memory for memory in db.get_user_memories(user_id="u1")] == ["likes tea"]
    assert db.get_sessions() == []
    assert db.get_runs() == []


async def test_without_a_database_of_its_own_it_keeps_no_memories_and_asks_no_model_for_them() -> None:
    model = Scripted("noted")
    await AgnoExecutor(a_team(model, update_memory_on_run=True)).run(a_turn(user_id="u1"))
    assert len(model.asked) == 1


async def test_the_team_given_is_as_it_was_after_many_turns_side_by_side() -> None:
    team = a_team(
        Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("a1", "go"))),
        an_agent(),
        session_state={"n": 1},
        metadata={"of": "team"},
        add_history_to_context=True,
    )
    executor = AgnoExecutor(team)
    before = {name: repr(value) for name, value in vars(team).items() if name not in {"members", "model"}}
    await asyncio.gather(*(executor.run(a_turn(session_id=f"s{number}")) for number in range(20)))
    after = {name: repr(value) for name, value in vars(team).items() if name not in {"members", "model"}}
    assert after == before


async def test_fifty_sessions_at_once_on_one_team_see_nothing_of_each_other() -> None:
    gate = asyncio.Event()
    entered: list[str] = []

    async def lookup(run_context: RunContext, what: str) -> str:
        """Look up."""
        entered.append(what)
        if len(entered) == 50:
            gate.set()
        await gate.wait()  # all are in the middle of their turns at the same time
        state = run_context.session_state
        assert state is not None
        state["mine"] = f"{state['mine']}+{what}"
        return f"{run_context.user_id} {run_context.metadata} {what}"

    def member(messages: list[Message]) -> Any:
        task = str(messages[-1].content if messages[-1].role == "user" else messages[-3].content)
        return " ".join(results_in(messages)) or calls(("lookup", {"what": task}))

    def lead(messages: list[Message]) -> Any:
        asked = [str(message.content) for message in messages if message.role == "user"]
        return f"{asked} {results_in(messages)}" if results_in(messages) else delegates(("a1", asked[-1]))

    worker = an_agent(Scripted(member), tools=[lookup], add_history_to_context=True)
    executor = AgnoExecutor(a_team(Scripted(lead), worker, add_history_to_context=True, num_history_runs=2))

    async def take(number: int) -> tuple[Turn, Any]:
        own = f"own{number:02}"
        turn = a_turn(
            run_id=f"r-{own}",
            session_id=f"s-{own}",
            user_id=f"u-{own}",
            input=f"ask-{own}",
            metadata={"m": own},
            session_state={"mine": own},
        )
        turn.history = (PastRun(f"p-{own}", f"before-{own}", f"answered-{own}", 1),)
        return turn, await executor.run(turn)

    for turn, answer in await asyncio.gather(*map(take, range(50))):
        own = turn.session_id.removeprefix("s-")
        text = f"{answer} {turn.session_state} {turn.details} {turn.member_runs}"
        asked = [f"before-{own}", f"ask-{own}"]
        found = f"u-{own} {{'m': '{own}'}} ask-{own}"
        assert answer == f"{asked} {[found]}"
        assert {f"own{number:02}" for number in range(50) if f"own{number:02}" in text} == {own}
        assert turn.session_state == {"mine": f"{own}+ask-{own}"}


async def test_a_tool_is_the_object_that_was_given_and_not_a_copy_of_what_it_belongs_to() -> None:
    class Pool:
        def __init__(self) -> None:
            self.used = 0

        def lookup(self, what: str) -> str:
            """Look up."""
            self.used += 1
            return what

    pool = Pool()
    executor = AgnoExecutor(a_team(Scripted(_lookup), tools=[pool.lookup]))
    for _ in range(2):
        await executor.run(a_turn())
    assert pool.used == 2


async def test_a_model_s_connections_are_shared_and_what_agno_changes_of_it_is_not() -> None:
    class Connecting(Scripted):
        client: Any = None
        opened = 0

        @override
        async def ainvoke(self, messages: list[Message], **given: Any) -> Any:
            if self.client is None:
                Connecting.opened += 1
                self.client = object()
            self.role_of_run = "changed"
            return await super().ainvoke(messages, **given)

    model = Connecting()
    executor = AgnoExecutor(a_team(model))
    for _ in range(3):
        await executor.run(a_turn())
    assert (Connecting.opened, model.client is not None) == (1, True)
    assert not hasattr(model, "role_of_run")


async def test_a_model_that_agno_copies_answers_with_its_own_settings() -> None:
    class Thinking(Scripted):
        effort = "low"

    def instructions(team: Any) -> str:
        team.model = deepcopy(team.model)  # as Agno does for a model that reasons
        team.model.effort = "high"
        team.model.answer = lambda _: team.model.effort
        return "be brief"

    turn = a_turn()
    assert await AgnoExecutor(a_team(Thinking(), instructions=instructions)).run(turn) == "high"
    assert turn.usage.model_requests == 1


async def test_members_that_a_function_gives_are_copied_for_each_turn() -> None:
    shared = an_agent(Scripted("fine"))

    def members(session_state: dict[str, Any]) -> list[Any]:
        return [shared] if session_state["wanted"] else []

    model = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("a1", "go")))
    team = a_team(model)
    team.members = members
    turn = a_turn(session_state={"wanted": True})
    assert await AgnoExecutor(team).run(turn) == "fine"
    assert shared.team_id is None
    assert turn.usage.model_requests == 3


async def test_what_members_that_a_function_gives_share_is_not_given_a_turn_s_models() -> None:
    """Else the later turns would ask by the first one's, which is over."""
    db = InMemoryDb()
    shared = LearningMachine(db=db, user_memory=True)
    clerk = Scripted("served")
    leader = Scripted(lambda messages: " ".join(results_in(messages)) or delegates(("clerk", "serve")))
    team = a_team(leader, members=lambda: [an_agent(clerk, id="clerk", name="clerk", db=db, learning=shared)])
    executor = AgnoExecutor(team)
    for number in range(3):
        turn = a_turn(run_id=f"r{number}", user_id=f"u{number}")
        async with asyncio.timeout(10):
            assert await executor.run(turn) == "served"
    assert shared.model is clerk


async def test_models_of_follow_ups_are_the_turn_s_too() -> None:
    follow = Scripted('{"suggestions": ["a", "b", "c"]}')
    turn = a_turn()
    await AgnoExecutor(an_agent(Scripted("fine"), followups=FollowupConfig(model=follow))).run(turn)
    assert len(follow.asked) == 1
    assert turn.usage.model_requests == 2


async def test_steps_that_are_given_as_a_tuple_are_copied_too() -> None:
    model = Scripted("found")
    steps = (Step(name="find", agent=an_agent(model, id="finder")),)
    turn = a_turn()
    assert await AgnoExecutor(Workflow(id="w1", steps=steps, telemetry=False)).run(turn) == "found"
    assert turn.usage.model_requests == 1


async def test_a_state_that_is_to_be_overwritten_by_the_request_s_is_not_lost() -> None:
    turn = a_turn(session_state={"a": 1})
    with capture_logs() as logs:
        executor = AgnoExecutor(a_team(overwrite_db_session_state=True))
    await executor.run(turn)
    assert turn.session_state == {"a": 1}
    (warned,) = (entry for entry in logs if entry["event"] == "agno_setting_without_effect")
    assert (warned["of"], warned["setting"]) == ("t1", "overwrite_db_session_state")


_FAILING = """
import asyncio
import sys
from agno.exceptions import ModelProviderError
from tests.unit.agno_objects import Scripted, a_team
from tests.unit.examples import a_turn
from worker.operations.logging import configure_logging
configure_logging(content=sys.argv[1:] == ["content"])
from worker.agno.executor import AgnoExecutor
error = ModelProviderError("Incorrect API key provided: sk-proj-abcdefghijkl")
executor = AgnoExecutor(a_team(Scripted(lambda _: error)))
asyncio.run(executor.run(a_turn()))
"""


def test_agno_s_log_lines_are_ours_and_show_no_key_and_what_they_quote_if_asked_for() -> None:
    for words, shown in (
        (["content"], "Error in Team run: Incorrect API key provided: [redacted]"),
        ([], "Error in Team run (text left out; see TEAMTURN_LOG_CONTENT)"),
    ):
        ran = subprocess.run([sys.executable, "-c", _FAILING, *words], capture_output=True, text=True, check=False)
        assert ran.stdout == ""
        lines = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
        assert shown in [line["event"] for line in lines]
        assert any("Incorrect" in line["event"] for line in lines) == bool(words)
        assert "sk-proj" not in ran.stderr.partition("Traceback")[0]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Could not run function look_up(who='Ada'): no such user", "Could not run function look_up"),
        (ValueError("Ada"), "ValueError"),
        ("Failed to parse 'Ada'", "Failed to parse"),
        ("Memory is off", None),
    ],
)
def test_what_agno_quotes_is_left_out_of_its_lines(message: object, shown: str | None) -> None:
    record = logging.LogRecord("agno", logging.WARNING, "", 1, message, None, None)
    assert _cut(record, content=False)
    assert record.getMessage() == (message if shown is None else f"{shown} {LEFT_OUT}")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (object, "needs an Agno Team, Agent or Workflow, not object"),
        (lambda: a_team(id=None), "needs an id or a name"),
        (lambda: a_team(id="n" * 300), "the id"),
    ],
    ids=["no Agno object", "no id", "too long an id"],
)
def test_what_can_t_be_is_said_when_it_is_made(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgnoExecutor(made())
