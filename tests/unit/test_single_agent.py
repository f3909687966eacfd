"""A pydantic-ai agent that takes turns by itself, and what becomes of one in TEAMTURN_TEAMS."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, RunContext, Tool
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import UsageLimits

from schemas.ids import SessionType
from tests.unit.examples import NOW, a_past_run, a_request, a_turn, agent, context_of
from tests.unit.models import failing, member, never_answering, prompts, responses, says, text
from worker.errors import ModelFailed, StartupError, TurnTimedOut, UsageLimitReached
from worker.executors.attempt import attempt, new_turn
from worker.executors.registry import load_executors
from worker.executors.turn import Turn
from worker.team.single_agent import SingleAgent
from worker.team.team import Team

_AGENTS = """
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from teamturn import SingleAgent, Team, executor

helper = Agent(TestModel(), name="helper")
other = Agent(TestModel(), name="other")
lead = Team("lead", TestModel(), members=[helper])
nameless = Agent(TestModel())
modelless = Agent(name="plain")
"""

Module = Callable[[str], str]
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Write a module of agents into the working directory, with a line more, and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: list[str] = []

    def write(line: str) -> str:
        written.append(f"users_agents_{next(_numbers)}")
        (tmp_path / f"{written[-1]}.py").write_text(f"{_AGENTS}{line}\n")
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


# --- a turn


async def test_an_agent_answers_with_the_history_before_the_input() -> None:
    asked = responses(text("4"))
    turn = new_turn(a_request(agent_id="helper"), None, context_of(a_past_run(1)), attempt=1)
    assert await SingleAgent(member("helper", asked.model)).run(turn) == "4"
    assert prompts(asked.asked[0]) == ["question 1", "hello"]
    assert [message["role"] for message in turn.messages] == ["user", "assistant"]
    assert turn.member_runs == []
    assert (turn.usage.input_tokens, turn.usage.model_requests) == (10, 1)


async def test_an_agent_is_given_parts_as_they_were_sent() -> None:
    asked = responses(text("x"))
    parts = [{"type": "text", "text": "look"}, {"type": "binary", "media_type": "image/png", "data": "iVBORw=="}]
    await SingleAgent(member("helper", asked.model)).run(a_turn(agent_id="helper", input=parts))
    assert prompts(asked.asked[0]) == [["look", BinaryContent(data=b"\x89PNG", media_type="image/png")]]


async def test_structured_output_is_the_answer_as_json() -> None:
    class City(BaseModel):
        name: str

    finder = Agent(TestModel(custom_output_args={"name": "Paris"}), name="finder", output_type=City)
    turn = a_turn(agent_id="finder")
    outcome = await attempt(SingleAgent(finder), turn, limit=timedelta(seconds=30), now=NOW, deadline=None)
    assert outcome.content == {"name": "Paris"}


async def test_tools_and_instructions_of_the_agent_s_own_get_the_turn() -> None:
    def note(context: RunContext[Turn]) -> str:
        context.deps.session_state["noted"] = context.deps.run_id
        return "noted"

    asked = responses(ModelResponse(parts=[ToolCallPart("note", {})]), text("done"))
    helper: Agent[Turn, str] = Agent(asked.model, name="helper", deps_type=Turn, tools=[Tool(note)])

    @helper.instructions
    def who(context: RunContext[Turn]) -> str:
        return f"You talk to {context.deps.user_id}."

    turn = a_turn(agent_id="helper", user_id="u1")
    assert await SingleAgent(helper).run(turn) == "done"
    assert turn.session_state == {"noted": "r1"}
    assert asked.infos[0].instructions == "You talk to u1."


async def test_an_agent_can_be_shown_the_state_and_change_it() -> None:
    change = ModelResponse(parts=[ToolCallPart("update_session_state", {"changes": {"lang": "de"}})])
    asked = responses(change, text("done"))
    made = SingleAgent(
        member("helper", asked.model),
        session_state={"lang": "en"},
        add_session_state_to_context=True,
        enable_agentic_state=True,
    )
    turn = a_turn(agent_id="helper")
    await made.run(turn)
    assert turn.session_state == {"lang": "de"}
    assert ['{"lang":"en"}' in (info.instructions or "") for info in asked.infos] == [True, False]


async def test_the_summary_is_shown_to_the_agent() -> None:
    asked = responses(text("x"))
    turn = a_turn(agent_id="helper")
    turn.summary = "They spoke of Paris."
    await SingleAgent(member("helper", asked.model), session_summary=True).run(turn)
    assert "They spoke of Paris." in (asked.infos[0].instructions or "")


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (partial(SingleAgent, member("a", failing(ModelHTTPError(400, "told")))), ModelFailed),
        (partial(SingleAgent, member("a", never_answering()), timeout=0.02), TurnTimedOut),
        (partial(SingleAgent, member("a", says("x")), usage_limits=UsageLimits(request_limit=0)), UsageLimitReached),
    ],
    ids=["model", "timeout", "usage limit"],
)
async def test_what_an_agent_fails_with_has_the_code_of_a_team_s(
    made: Callable[[], SingleAgent], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await made().run(a_turn(agent_id="a"))


# --- making one


def test_an_agent_is_named_by_its_name_or_by_an_id() -> None:
    made = SingleAgent(member("helper", says("x")))
    assert (made.target, made.name, made.history_runs, made.model_name) == (
        agent("helper"),
        "helper",
        3,
        "function:told",
    )
    assert made.summarizer is None
    named = SingleAgent(member("helper", says("x")), id="help-desk")
    assert (named.target, named.name) == (agent("help-desk"), "helper")
    assert SingleAgent(Agent(TestModel()), id="nameless").target == agent("nameless")


_any_agent: Any = SingleAgent


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (partial(SingleAgent, Agent(TestModel())), "needs a name"),
        (partial(SingleAgent, Agent(name="plain")), "agent 'plain' has no model"),
        (partial(SingleAgent, Agent(TestModel(), name="a\nb")), "agent id"),
        (partial(SingleAgent, member("a"), id="é" * 128), "255"),
        (partial(SingleAgent, member("a"), history_runs=-1), "-1"),
        (partial(SingleAgent, member("a"), timeout=0), "above 0"),
        (partial(SingleAgent, member("a"), model_retries=-1), "-1"),
        (partial(_any_agent, Team("t", TestModel())), "not Team"),
        (partial(_any_agent, "helper"), "not str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_is_a_value_error_that_says_what(made: Callable[[], SingleAgent], reason: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)agent") as failed:
        made()
    assert reason in str(failed.value)


@pytest.mark.parametrize("model", ["no-such-model", "openai:gpt-5"])
def test_a_model_that_can_not_be_made_is_an_error_here_even_if_the_agent_put_it_off(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(Exception, match=r"nknown model|OPENAI_API_KEY"):
        SingleAgent(Agent(model, name="helper", defer_model_check=True))


# --- in TEAMTURN_TEAMS


def test_an_agent_in_teams_becomes_one_that_takes_turns(module: Module) -> None:
    found = load_executors(f"{module('')}:helper")
    assert found.keys() == {agent("helper")}
    assert isinstance(found[agent("helper")], SingleAgent)


def test_agents_stand_beside_teams_in_a_list(module: Module) -> None:
    found = load_executors(f"{module('teams = [lead, helper, other]')}:teams")
    assert {str(target) for target in found} == {"team.lead", "agent.helper", "agent.other"}
    assert {target.type for target in found} == {SessionType.TEAM, SessionType.AGENT}


def test_a_single_agent_in_teams_keeps_its_options(module: Module) -> None:
    name = module("it = SingleAgent(helper, id='desk', history_runs=7)")
    found = load_executors(f"{name}:it")
    assert found[agent("desk")].history_runs == 7


def test_the_same_agent_named_twice_is_one(module: Module) -> None:
    """As the same Team is."""
    name = module("teams = [helper, lead, helper]")
    assert len(load_executors(f"{name}:teams,{name}:helper")) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("it = nameless", "needs a name"),
        ("it = [helper, nameless]", "needs a name"),
        ("it = modelless", "agent 'plain' has no model"),
        ("it = [lead, modelless]", "agent 'plain' has no model"),
        ("it = [helper, Agent(TestModel(), name='helper')]", "agent.helper twice"),
        ("it = Agent('openai:gpt-5', name='keyless', defer_model_check=True)", "OPENAI_API_KEY"),
    ],
)
def test_an_agent_that_can_take_no_turns_ends_the_start_with_one_line(
    module: Module, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    name = module(line)
    with pytest.raises(StartupError) as refused:
        load_executors(f"{name}:it")
    message = str(refused.value)
    assert reason in message
    assert "TEAMTURN_TEAMS" in message
    assert "\n" not in message
