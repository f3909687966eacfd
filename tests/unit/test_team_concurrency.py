"""One Team object serves any number of turns at once, and nothing of one is seen in another."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic_ai import RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo

from schemas.replies import RunStatus
from tests.unit.examples import NOW, a_past_run, a_request, a_session, context_of
from tests.unit.models import Recorded, member, prompts, responses_so_far, tasks, text
from worker.executors.attempt import Outcome, attempt, new_turn
from worker.executors.turn import Turn
from worker.team.team import Team

_TURNS = 50


def _lead(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Remember the question in the state, give both members it, and answer with all that was seen."""
    asked = prompts(messages)
    match responses_so_far(messages):
        case 0:
            return ModelResponse(parts=[ToolCallPart("remember", {"fact": asked[-1]})])
        case 1:
            return tasks(("agent", f"{asked[-1]}"), ("inner", f"{asked[-1]}"))
        case _:
            return text(" | ".join(map(str, asked)))


def _lead_inner(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    (task,) = prompts(messages)
    return text(f"<{task}>") if responses_so_far(messages) else tasks(("deep", f"{task} deeper"))


async def _remember(context: RunContext[Turn], fact: str) -> str:
    await asyncio.sleep(0)
    context.deps.session_state["fact"] = fact
    return "remembered"


async def test_fifty_turns_at_once_leak_nothing_into_each_other() -> None:
    inner = Team("inner", Recorded(_lead_inner).model, members=[member("deep")])
    made = Team("t", Recorded(_lead).model, members=[member("agent"), inner], tools=[Tool(_remember, name="remember")])

    async def one(number: int) -> tuple[Turn, Outcome]:
        request = a_request(run_id=f"r{number}", session_id=f"s{number}", input=f"q{number}")
        stored = a_session(session_state={"mine": number})
        turn = new_turn(request, stored, context_of(a_past_run(number)), attempt=1)
        return turn, await attempt(made, turn, limit=timedelta(seconds=60), now=NOW, deadline=None)

    results = await asyncio.gather(*(one(number) for number in range(_TURNS)))
    run_ids: set[str] = set()
    for number, (turn, outcome) in enumerate(results):
        assert outcome.status is RunStatus.COMPLETED
        assert outcome.content == f"question {number} | q{number}"
        assert outcome.session_state == {"mine": number, "fact": f"q{number}"}
        contents = {run.member.id: run.content for run in turn.member_runs}
        assert contents == {"agent": f"[q{number}]", "inner": f"<q{number}>", "deep": f"[q{number} deeper]"}
        assert {run.parent_run_id for run in turn.member_runs if run.member.id != "deep"} == {f"r{number}"}
        assert (turn.usage.model_requests, turn.usage.tool_calls) == (7, 4)
        run_ids |= {run.run_id for run in turn.member_runs}
    assert len(run_ids) == 3 * _TURNS


async def test_a_turn_that_fails_leaves_those_beside_it_alone() -> None:
    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if prompts(messages)[-1] == "fail":
            raise LookupError("told to")
        return text("fine")

    made = Team("t", Recorded(answer).model)

    async def one(number: int) -> RunStatus:
        turn = new_turn(
            a_request(run_id=f"r{number}", input="fail" if number % 5 == 0 else "x"), None, context_of(), attempt=1
        )
        return (await attempt(made, turn, limit=timedelta(seconds=60), now=NOW, deadline=None)).status

    statuses = await asyncio.gather(*(one(number) for number in range(_TURNS)))
    assert statuses == [RunStatus.ERROR if number % 5 == 0 else RunStatus.COMPLETED for number in range(_TURNS)]
