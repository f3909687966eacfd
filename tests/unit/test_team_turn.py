"""A turn of a team without members: what its model is asked, and what comes of the answer."""

from __future__ import annotations

import base64
from typing import Any, cast

import pytest
from pydantic_ai import BinaryContent, RunContext, Tool
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.test import TestModel

from tests.unit.examples import a_past_run, a_request, a_turn, context_of
from tests.unit.models import prompts, responses, text
from worker.executors.attempt import new_turn
from worker.executors.turn import PastRun, Turn
from worker.team.team import Team


def _turn(*history: PastRun, **fields: Any) -> Turn:
    return new_turn(a_request(**fields), None, context_of(*history), attempt=1)


async def test_the_model_s_text_is_the_answer() -> None:
    assert await Team("t", responses(text("Paris")).model).run(a_turn()) == "Paris"


async def test_pydantic_ai_s_test_model_can_lead_a_team() -> None:
    assert await Team("t", TestModel(custom_output_text="Paris")).run(a_turn()) == "Paris"


async def test_the_model_is_asked_the_past_runs_in_order_and_then_the_input() -> None:
    recorded = responses(text("4"))
    await Team("t", recorded.model).run(_turn(a_past_run(1), a_past_run(2), input="question 3"))
    (messages,) = recorded.asked
    assert prompts(messages) == ["question 1", "question 2", "question 3"]
    said = [part.content for one in messages if isinstance(one, ModelResponse) for part in one.parts]  # type: ignore[union-attr]
    assert said == ["answer 1", "answer 2"]
    assert [type(one) for one in messages] == [ModelRequest, ModelResponse, ModelRequest, ModelResponse, ModelRequest]


async def test_an_answer_that_was_json_is_shown_as_its_json() -> None:
    recorded = responses(text("x"))
    await Team("t", recorded.model).run(_turn(a_past_run(1, content={"city": "Paris"})))
    answered = recorded.asked[0][1].parts[0]
    assert isinstance(answered, TextPart)
    assert answered.content == '{"city":"Paris"}'


@pytest.mark.parametrize("silent", [{"input": ""}, {"content": None}, {"content": ""}])
async def test_a_past_run_without_a_question_or_an_answer_is_left_out(silent: dict[str, Any]) -> None:
    recorded = responses(text("x"))
    await Team("t", recorded.model).run(_turn(a_past_run(1, **silent), a_past_run(2)))
    assert prompts(recorded.asked[0]) == ["question 2", "hello"]


@pytest.mark.parametrize("history", [(), (a_past_run(1),)], ids=["first turn", "later turn"])
async def test_the_instructions_are_given_in_every_turn(history: tuple[PastRun, ...]) -> None:
    recorded = responses(text("x"))
    await Team("t", recorded.model, instructions="Answer briefly.").run(_turn(*history))
    assert recorded.infos[0].instructions == "Answer briefly."


async def test_without_instructions_and_members_the_model_is_told_nothing() -> None:
    recorded = responses(text("x"))
    await Team("t", recorded.model).run(a_turn())
    assert recorded.infos[0].instructions is None
    assert recorded.infos[0].function_tools == []


async def test_parts_are_given_as_text_and_files_in_their_order() -> None:
    recorded = responses(text("x"))
    picture = {"type": "binary", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}
    await Team("t", recorded.model).run(_turn(input=[{"type": "text", "text": "look"}, picture]))
    ((looked, seen),) = cast("list[list[object]]", prompts(recorded.asked[0]))
    assert looked == "look"
    assert isinstance(seen, BinaryContent)
    assert (seen.data, seen.media_type) == (b"\x89PNG", "image/png")


async def test_an_empty_input_is_asked_all_the_same() -> None:
    recorded = responses(text("x"))
    assert await Team("t", recorded.model).run(_turn(input="")) == "x"
    assert prompts(recorded.asked[0]) == [""]


async def test_model_settings_reach_the_model() -> None:
    recorded = responses(text("x"))
    await Team("t", recorded.model, model_settings={"temperature": 0.0}).run(a_turn())
    # The provider's own client does not try again: the team does.
    assert recorded.infos[0].model_settings == {"temperature": 0.0, "max_retries": 0}


async def test_a_tool_sees_the_turn_and_what_it_changes_in_the_state_stays() -> None:
    def remember(context: RunContext[Turn], fact: str) -> str:
        context.deps.session_state["fact"] = fact
        return context.deps.run_id

    recorded = responses(ModelResponse(parts=[ToolCallPart("remember", {"fact": "blue"})]), text("done"))
    turn = a_turn()
    assert await Team("t", recorded.model, tools=[Tool(remember)]).run(turn) == "done"
    assert turn.session_state == {"fact": "blue"}
    assert turn.usage.tool_calls == 1


async def test_the_tokens_and_requests_of_the_turn_are_counted() -> None:
    turn = a_turn()
    await Team("t", responses(text("x", tokens=(120, 7))).model).run(turn)
    usage = turn.usage
    assert (usage.input_tokens, usage.output_tokens, usage.model_requests, usage.tool_calls) == (120, 7, 1, 0)
