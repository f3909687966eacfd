"""Workflows: steps in order, each of which sees the results before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest
from pydantic import BaseModel, JsonValue
from pydantic_ai import Agent, BinaryContent, RunContext, Tool
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import UsageLimits

from schemas.errors import ErrorCode
from schemas.ids import SessionType
from schemas.replies import RunStatus
from tests.unit.examples import NOW, a_past_run, a_request, a_session, a_turn, agent, context_of, team
from tests.unit.models import failing, member, never_answering, prompts, responses, says, tasks, text
from worker.errors import ExecutorFailed, ModelFailed, TurnFailed, TurnTimedOut, UsageLimitReached
from worker.executors.attempt import attempt, new_turn
from worker.executors.function import executor
from worker.executors.turn import Turn
from worker.team.team import Team
from worker.team.workflow import Step, Workflow

_LONG: Final = timedelta(seconds=30)


async def fetch(turn: Turn) -> JsonValue:
    return f"fetched {turn.input}"


async def broken(_: Turn) -> JsonValue:
    raise LookupError("told to")


def names(turn: Turn) -> list[str]:
    return [step.name for step in turn.step_results]


async def test_steps_run_in_order_under_their_names_and_the_last_one_s_result_is_the_answer() -> None:
    turn = a_turn(workflow_id="w")
    inner = Team("lead", says("from the team"))
    made = Workflow("w", [fetch, Step("mine", fetch), member("writer", says("written")), inner, Step("last", fetch)])
    assert await made.run(turn) == "fetched hello"
    assert [(step.name, step.kind) for step in turn.step_results] == [
        ("fetch", "function"),
        ("mine", "function"),
        ("writer", "agent"),
        ("lead", "team"),
        ("last", "function"),
    ]
    assert {step.status for step in turn.step_results} == {RunStatus.COMPLETED}
    assert [step.content for step in turn.step_results[2:4]] == ["written", "from the team"]


async def test_an_agent_and_a_team_are_given_the_input_and_after_it_the_results_so_far() -> None:
    first, second = responses(text("one")), responses(text("two"))
    turn = a_turn(workflow_id="w", input="what?")
    await Workflow("w", [member("first", first.model), fetch, Team("second", second.model)]).run(turn)
    assert prompts(first.asked[0]) == ["what?"]
    assert prompts(second.asked[0]) == [
        'what?\n\n<result step="first">\none\n</result>\n<result step="fetch">\nfetched what?\n</result>'
    ]


async def test_parts_come_as_they_are_with_the_results_after_them() -> None:
    second = responses(text("two"))
    parts = [
        {"type": "text", "text": "look"},
        {"type": "binary", "media_type": "image/png", "data": "iVBORw=="},
    ]
    await Workflow("w", [fetch, member("second", second.model)]).run(a_turn(workflow_id="w", input=parts))
    (given,) = prompts(second.asked[0])
    assert isinstance(given, list)
    assert given[:2] == ["look", BinaryContent(data=b"\x89PNG", media_type="image/png")]
    assert given[2:] == ['<result step="fetch">\nfetched look\n</result>']


async def test_a_function_finds_the_results_as_json_and_cannot_change_them() -> None:
    class City(BaseModel):
        name: str

    seen: list[dict[str, JsonValue]] = []

    async def look(turn: Turn) -> JsonValue:
        seen.append(dict(turn.results))
        with pytest.raises(TypeError):
            turn.results["city"] = "changed"  # type: ignore[index]
        return None

    finder: Agent[Turn, City] = Agent(TestModel(custom_output_args={"name": "Paris"}), name="city", output_type=City)
    await Workflow("w", [Step("before", look), finder, look]).run(a_turn(workflow_id="w"))
    assert seen == [{}, {"before": None, "city": {"name": "Paris"}}]


async def test_what_a_function_changes_in_a_result_is_seen_by_nobody_after_it() -> None:
    async def makes(_: Turn) -> JsonValue:
        return {"list": [1]}

    async def changes(turn: Turn) -> JsonValue:
        deep: Any = turn.results["makes"]
        deep["list"].append("changed")
        return None

    async def last(turn: Turn) -> Any:
        return turn.results["makes"]

    turn = a_turn(workflow_id="w")
    assert await Workflow("w", [makes, changes, last]).run(turn) == {"list": [1]}
    assert turn.step_results[0].content == {"list": [1]}


async def test_tools_and_instructions_of_a_step_s_agent_find_the_results_too() -> None:
    async def look(context: RunContext[Turn]) -> str:
        return str(context.deps.results["fetch"])

    asked = responses(ModelResponse(parts=[ToolCallPart("look", {})]), text("done"))
    looker: Agent[Turn, str] = Agent(asked.model, name="looker", deps_type=Turn, tools=[Tool(look)])
    turn = a_turn(workflow_id="w")
    await Workflow("w", [fetch, looker]).run(turn)
    assert "fetched hello" in str(asked.asked[1][-1])


async def test_all_steps_share_the_session_s_state_and_its_name() -> None:
    async def begin(turn: Turn) -> JsonValue:
        turn.session_state["steps"] = ["begin"]
        turn.session_name = "Named"
        return None

    def note(context: RunContext[Turn]) -> str:
        steps: Any = context.deps.session_state["steps"]
        steps.append("agent")
        return ""

    async def end(turn: Turn) -> JsonValue:
        return [turn.session_state["steps"], turn.session_name]

    noting: Agent[Turn, str] = Agent(says("x"), name="noting", deps_type=Turn, instructions=note)
    turn = a_turn(workflow_id="w", session_state={"asked": 1})
    assert await Workflow("w", [begin, noting, end]).run(turn) == [["begin", "agent"], "Named"]
    assert turn.session_state == {"asked": 1, "steps": ["begin", "agent"]}
    assert turn.session_name == "Named"


async def test_a_state_that_a_step_puts_in_place_of_the_given_one_is_the_session_s() -> None:
    """As in an executor that takes a turn by itself."""

    @executor("replaces")
    async def replaces(turn: Turn) -> JsonValue:
        turn.session_state = {"new": 1}
        return None

    turn = a_turn(workflow_id="w", session_state={"old": 1})
    await Workflow("w", [replaces]).run(turn)
    assert turn.session_state == {"new": 1}


async def test_an_executor_can_be_a_step_under_its_id() -> None:
    @executor("prices", kind="workflow", history_runs=0)
    async def look_up(turn: Turn) -> JsonValue:
        return [turn.input, dict(turn.results), turn.run_id]

    turn = a_turn(workflow_id="w")
    assert await Workflow("w", [fetch, look_up]).run(turn) == ["hello", {"fetch": "fetched hello"}, "r1"]
    assert names(turn) == ["fetch", "prices"]
    assert turn.member_runs == [], "a function has no run of its own"


async def test_agents_and_teams_have_runs_below_the_workflow_s() -> None:
    inner = Team("inner", responses(tasks(("deep", "dig")), text("dug")).model, members=[member("deep")])
    turn = a_turn(workflow_id="w")
    await Workflow("w", [Step("first", member("writer", says("written"))), Step("second", inner)]).run(turn)
    writer, deep, led = turn.member_runs
    assert (writer.member, writer.name, writer.parent_run_id) == (agent("writer"), "writer", "r1")
    assert (led.member, led.parent_run_id, deep.parent_run_id) == (team("inner"), "r1", led.run_id)
    assert [step.run_id for step in turn.step_results] == [writer.run_id, led.run_id]
    assert [message["role"] for message in writer.messages] == ["user", "assistant"]


async def test_one_agent_in_two_steps_has_two_runs_whose_ids_are_the_same_in_every_attempt() -> None:
    writer = member("writer")
    made = Workflow("w", [Step("draft", writer), Step("final", writer)])

    async def run_ids(run_id: str) -> list[str]:
        turn = a_turn(workflow_id="w", run_id=run_id)
        await made.run(turn)
        return [run.run_id for run in turn.member_runs]

    first, again, other = await run_ids("r1"), await run_ids("r1"), await run_ids("r2")
    assert first == again
    assert len({*first, *other}) == 4


@pytest.mark.parametrize(
    ("step", "error", "runs"),
    [
        (Step("breaks", broken), ExecutorFailed, 1),
        (Step("breaks", member("m", failing(ModelHTTPError(400, "told")))), ModelFailed, 2),
        (Step("breaks", Team("t", failing(ModelHTTPError(400, "told")))), ModelFailed, 2),
    ],
    ids=["function", "agent", "team"],
)
async def test_a_step_that_fails_ends_the_turn_and_what_was_done_is_kept(
    step: Step, error: type[Exception], runs: int
) -> None:
    turn = a_turn(workflow_id="w")
    with pytest.raises(error):
        await Workflow("w", [member("done", says("fine")), step, Step("never", fetch)]).run(turn)
    assert [(one.name, one.status, one.content) for one in turn.step_results] == [
        ("done", RunStatus.COMPLETED, "fine"),
        ("breaks", RunStatus.ERROR, None),
    ]
    assert len(turn.member_runs) == runs
    assert turn.member_runs[-1].status is (RunStatus.ERROR if runs == 2 else RunStatus.COMPLETED)
    assert turn.usage.input_tokens == 10, "what was spent is counted"


async def test_a_step_that_returns_no_json_fails_with_the_step_s_name() -> None:
    async def odd(_: Turn) -> Any:
        return object()

    turn = a_turn(workflow_id="w")
    outcome = await attempt(Workflow("w", [odd]), turn, limit=_LONG, now=NOW, deadline=None)
    assert outcome.error is not None
    assert (outcome.error.code, "'odd'" in outcome.error.message) == (ErrorCode.INVALID_RESULT, True)
    assert [(step.name, step.status, step.content) for step in turn.step_results] == [("odd", RunStatus.ERROR, None)]


@pytest.mark.parametrize("kind", ["function", "agent"])
async def test_a_workflow_that_takes_too_long_leaves_its_step_cancelled(kind: str) -> None:
    async def slow(_: Turn) -> JsonValue:
        await asyncio.Event().wait()
        return None

    turn = a_turn(workflow_id="w")
    runs: Any = slow if kind == "function" else member("slow", never_answering())
    with pytest.raises(TurnTimedOut):
        await Workflow("w", [fetch, runs], timeout=0.05).run(turn)
    assert [step.status for step in turn.step_results] == [RunStatus.COMPLETED, RunStatus.CANCELLED]
    assert [run.status for run in turn.member_runs] == ([] if kind == "function" else [RunStatus.CANCELLED])


async def test_a_usage_limit_is_one_of_all_steps_together() -> None:
    turn = a_turn(workflow_id="w")
    steps = [member(name, says("x")) for name in ("a", "b", "c")]
    with pytest.raises(UsageLimitReached):
        await Workflow("w", steps, usage_limits=UsageLimits(request_limit=2)).run(turn)
    assert (turn.usage.model_requests, names(turn)) == (2, ["a", "b", "c"])


@pytest.mark.parametrize(("shown", "seen"), [(False, ["hello"]), (True, ["question 1", "hello"])])
async def test_agents_see_the_history_only_where_asked(*, shown: bool, seen: list[str]) -> None:
    asked, led = responses(text("x")), responses(text("x"))
    steps: list[Any] = [member("a", asked.model), Team("t", led.model)]
    turn = new_turn(a_request(workflow_id="w"), None, context_of(a_past_run(1)), attempt=1)
    await Workflow("w", steps, add_history_to_steps=shown).run(turn)
    assert prompts(asked.asked[0]) == seen
    *past, given = prompts(led.asked[0])
    assert past == seen[:-1]
    assert str(given).startswith("hello\n\n")


async def test_a_function_finds_the_history_in_the_turn() -> None:
    async def look(turn: Turn) -> JsonValue:
        return [run.input for run in turn.history]

    turn = new_turn(a_request(workflow_id="w"), None, context_of(a_past_run(1)), attempt=1)
    assert await Workflow("w", [look]).run(turn) == ["question 1"]


async def test_a_new_session_begins_with_the_workflow_s_state_and_a_stored_one_stays() -> None:
    async def look(turn: Turn) -> JsonValue:
        return dict(turn.session_state)

    made = Workflow("w", [look], session_state={"cart": [], "lang": "en"})
    assert await made.run(a_turn(workflow_id="w")) == {"cart": [], "lang": "en"}
    stored = a_session(session_type=SessionType.WORKFLOW, target_id="w", session_state={"cart": ["tea"]})
    turn = new_turn(a_request(workflow_id="w"), stored, context_of(), attempt=1)
    assert await made.run(turn) == {"cart": ["tea"], "lang": "en"}


def test_a_workflow_is_named_by_its_id_and_is_shown_three_runs() -> None:
    made = Workflow("w", [fetch])
    assert (made.target.type, made.target.id, made.name, made.history_runs) == (SessionType.WORKFLOW, "w", "w", 3)
    assert Workflow("w", [fetch], name="Ours", history_runs=None).history_runs is None


_any_step: Any = Step
_NAMELESS: Agent[Turn, str] = Agent(says("x"))
_MODELLESS: Agent[Turn, str] = Agent(name="plain", deps_type=Turn)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (partial(Workflow, "", [fetch]), "workflow id ''"),
        (partial(Workflow, "w", []), "no steps"),
        (partial(Workflow, "w", [fetch, fetch]), "two steps are called 'fetch'"),
        (partial(Workflow, "w", [member("fetch"), fetch]), "two steps are called 'fetch'"),
        (partial(Workflow, "w", [Step("a", fetch), Step("a", broken)]), "two steps are called 'a'"),
        (partial(Workflow, "w", [fetch, Step("", fetch)]), "step 2 has no name"),
        (partial(Workflow, "w", [partial(fetch)]), "step 1 has no name"),
        (partial(Workflow, "w", [fetch, _NAMELESS]), "step 2 has no name"),
        (partial(Workflow, "w", [_MODELLESS]), "no model"),
        (partial(Workflow, "w", [_any_step("a", lambda _: None)]), "step 'a' is function"),
        (partial(Workflow, "w", [_any_step("a", "researcher")]), "step 'a' is str"),
        (partial(Workflow, "w", [_any_step("a", None)]), "step 'a' is NoneType"),
        (partial(Workflow, "w", [_any_step("a", Workflow("inner", [fetch]))]), "step 'a' is Workflow"),
        (partial(Workflow, "w", [fetch], history_runs=-1), "-1"),
        (partial(Workflow, "w", [fetch], timeout=0), "above 0"),
        (partial(Workflow, "w", [fetch], model_retries=-1), "-1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_is_a_value_error_that_says_what(made: Callable[[], Workflow], reason: str) -> None:
    with pytest.raises(ValueError, match="workflow") as failed:
        made()
    assert reason in str(failed.value)


def test_a_session_state_that_is_no_json_is_a_mistake_at_the_start() -> None:
    odd: Any = {"connection": object()}
    with pytest.raises((ValueError, TurnFailed), match="session_state"):
        Workflow("w", [fetch], session_state=odd)
