"""Teams and their journal: model requests and tool calls that were recorded are not made again, by whomever."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.toolsets import FunctionToolset
from structlog.testing import capture_logs

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.books import Book
from tests.unit.models import Recorded, member, prompts, responses, responses_so_far, says, tasks, text
from worker.errors import LaneLost
from worker.executors.turn import Executor, Turn
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Workflow

_REPEATABLE: dict[str, Any] = {"teamturn": {"repeatable": True}}


class Price(BaseModel):
    amount: int
    currency: str


class World:
    """A team of a leader, two members that work side by side and have tools, and everything that is called, counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.ids = itertools.count()

    def _says(self, name: str, answer: Callable[[list[ModelMessage], AgentInfo], ModelResponse]) -> Recorded:
        def counted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            self.calls[f"{name} {responses_so_far(messages)}"] += 1
            return answer(messages, info)

        return Recorded(counted)

    def team(self, **arguments: Any) -> Team:
        def lead(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
            if responses_so_far(messages) == 0:
                # Ids are random with a provider: another attempt would be given others.
                ids = [f"call-{next(self.ids)}" for _ in range(2)]
                return tasks(("buyer", "buy tea"), ("asker", "ask"), ids=ids)
            return text(" | ".join(_returned(messages)))

        def buy(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
            if responses_so_far(messages) == 0:
                return ModelResponse(parts=[ToolCallPart("pay", {"amount": 3}, tool_call_id=f"pay-{next(self.ids)}")])
            return text(f"bought: {_returned(messages)[-1]}")

        async def pay(context: RunContext[Turn], amount: int) -> str:
            await asyncio.sleep(0)
            self.calls["pay"] += 1
            context.deps.session_state["paid"] = context.deps.session_state.get("paid", 0) + amount
            return f"receipt {self.calls['pay']}"

        buyer = Agent(self._says("buyer", buy).model, name="buyer", deps_type=Turn, tools=[pay])
        asker = member("asker", self._says("asker", lambda *_: text("asked")).model)
        return Team("t1", self._says("leader", lead).model, members=[buyer, asker], **arguments)


def _returned(messages: list[ModelMessage]) -> list[str]:
    return [str(part.content) for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


_ANSWER = "bought: receipt 1 | asked"
_RECORDED = ["leader 0", "leader 1", "buyer 0", "buyer 1", "asker 0", "pay"]


async def test_each_model_request_and_tool_call_is_a_step_members_included() -> None:
    world, book = World(), Book()
    outcome = await book.attempt(world.team())
    assert (outcome.content, outcome.session_state) == (_ANSWER, {"paid": 3})
    assert sorted(_short(key) for key in book.recorded()) == [
        "asker/model.request#1",
        "buyer/model.request#1",
        "buyer/model.request#2",
        "buyer/tool:pay@pay-2#1",
        "model.request#1",
        "model.request#2",
    ]


def _short(key: str) -> str:
    part, bracket, rest = key.partition("[")
    return part + rest[rest.index("]") + 1 :] if bracket else key


@pytest.mark.parametrize("dies_at", range(1, 8))
async def test_a_team_that_dies_at_any_write_makes_no_recorded_call_again(dies_at: int) -> None:
    world, book = World(), Book(dies_at=dies_at)
    before: set[str] = set()
    with pytest.raises(LaneLost):
        await book.attempt(world.team())
    before = {_short(key) for key in book.recorded()}
    first = Counter(world.calls)
    outcome = await book.attempt(world.team())
    names = {
        "model.request#1": "leader 0",
        "model.request#2": "leader 1",
        "buyer/model.request#1": "buyer 0",
        "buyer/model.request#2": "buyer 1",
        "asker/model.request#1": "asker 0",
    }
    repeated = [key for key in before if key in names and world.calls[names[key]] != first[names[key]]]
    assert repeated == []
    if any("pay" in key for key in book.recorded()):
        assert (outcome.content, outcome.session_state) == (_ANSWER, {"paid": 3})
    else:
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.STEP_UNCERTAIN
    assert world.calls["pay"] <= 1


async def test_a_resumed_turn_counts_what_the_whole_turn_used() -> None:
    world, book = World(), Book(dies_at=7)
    with pytest.raises(LaneLost):
        await book.attempt(world.team())
    await book.attempt(world.team())
    assert book.turn is not None
    whole = book.turn.usage
    once = Book()
    await once.attempt(World().team())
    assert once.turn is not None
    assert whole == once.turn.usage
    assert [run.run_id for run in book.turn.member_runs] != []


async def test_tokens_are_recorded_with_the_steps() -> None:
    book = Book()
    await book.attempt(SingleAgent(member("t1", says("hi")), id="a"))
    (step,) = [step for step in book.steps.values() if step.seq]
    assert (step.input_tokens, step.output_tokens) == (10, 2)


async def test_a_tool_can_be_declared_repeatable() -> None:
    book = Book(dies_at=3)
    made: list[int] = []

    def look(number: int) -> int:
        made.append(number)
        return number

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if responses_so_far(messages) == 0:
            return ModelResponse(parts=[ToolCallPart("look", {"number": 7}, tool_call_id="c1")])
        return text(_returned(messages)[-1])

    def agent() -> Executor:
        return SingleAgent(Agent(Recorded(answer).model, name="a", tools=[Tool(look, metadata=_REPEATABLE)]))

    # A repeatable tool's first write is its end: the second of all.
    book.dies_at = 2
    outcome = await book.until_done(agent())
    assert (outcome.content, made) == ("7", [7, 7])


async def test_a_tool_can_be_kept_out_of_the_journal() -> None:
    book = Book(dies_at=2)
    made: list[int] = []

    def now() -> int:
        made.append(1)
        return len(made)

    called = ModelResponse(parts=[ToolCallPart("now", {}, tool_call_id="c1")])
    model = responses(called, text("done")).model
    agent = Agent(model, name="a", tools=[Tool(now, metadata={"teamturn": False})])
    await book.until_done(SingleAgent(agent))
    assert book.recorded() == ["model.request#1", "model.request#2"]
    assert len(made) == 2


async def test_what_a_tool_says_to_the_model_instead_of_a_result_is_recorded_as_well() -> None:
    book, made = Book(dies_at=4), []

    def look(number: int) -> int:
        made.append(number)
        if number == 1:
            raise ModelRetry("another number")
        return number

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        done = responses_so_far(messages)
        if done < 2:
            return ModelResponse(parts=[ToolCallPart("look", {"number": done + 1}, tool_call_id=f"c{done}")])
        return text("found")

    agent = Agent(Recorded(answer).model, name="a", tools=[Tool(look, metadata=_REPEATABLE)])
    outcome = await book.until_done(SingleAgent(agent))
    assert (outcome.content, book.attempts) == ("found", 2)
    assert made in ([1, 2], [1, 2, 2])


async def test_a_tool_s_failure_is_the_same_again() -> None:
    book, made = Book(), []

    def fail() -> None:
        made.append(1)
        raise LookupError("with a secret")

    called = ModelResponse(parts=[ToolCallPart("fail", {}, tool_call_id="c1")])
    agent = SingleAgent(Agent(responses(called).model, name="a", tools=[fail]))
    first = await book.attempt(agent)
    second = await book.attempt(agent)
    assert len(made) == 1
    assert first.error is not None
    assert second.error is not None
    assert (first.error.code, first.error.message) == (second.error.code, second.error.message)
    assert first.error.message == "the tool 'fail' raised LookupError"


@pytest.mark.parametrize("dies_at", range(2, 6))
async def test_a_member_that_has_failed_is_not_asked_again_where_the_turn_went_on(dies_at: int) -> None:
    book, asked = Book(dies_at=dies_at), Counter[str]()

    def flaky(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        asked["flaky"] += 1
        raise RuntimeError("the provider's library broke")

    def lead(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        asked[f"leader {responses_so_far(messages)}"] += 1
        if responses_so_far(messages) == 0:
            return tasks(("flaky", "try"), ids=["c1"])
        return text(_returned(messages)[-1])

    members = [member("flaky", Recorded(flaky).model)]
    team = Team("t1", Recorded(lead).model, members=members, tolerate_member_failures=True)
    outcome = await book.until_done(team)
    assert str(outcome.content).startswith("This member has failed: ")
    recorded_before = dies_at > 2
    assert asked["flaky"] == (1 if recorded_before else 2)
    assert asked["leader 0"] == 1


@pytest.mark.parametrize("mode", ["route", "broadcast"])
@pytest.mark.parametrize("dies_at", range(1, 4))
async def test_the_other_modes_resume_as_well(mode: Any, dies_at: int) -> None:
    book = Book(dies_at=dies_at)
    counted: Counter[str] = Counter()

    def saying(name: str, answer: ModelResponse) -> Recorded:
        def respond(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
            counted[name] += 1
            return answer

        return Recorded(respond)

    choice = ModelResponse(parts=[ToolCallPart("route_to_member", {"member_id": "a"}, tool_call_id="c1")])
    leader = saying("leader", choice if mode == "route" else text("in sum"))
    members = [member(name, saying(name, text(name)).model) for name in ("a", "b")]
    outcome = await book.until_done(Team("t1", leader.model, members=members, mode=mode))
    assert outcome.status is RunStatus.COMPLETED
    # Whatever died with the first attempt was asked once more, and nothing else.
    recorded = 2 if mode == "route" else 3
    assert book.attempts == (2 if dies_at <= recorded else 1)
    assert sum(counted.values()) <= recorded + (len(members) if mode == "broadcast" else 1) * (book.attempts - 1)


async def test_a_nested_team_s_members_have_steps_of_their_own() -> None:
    book = Book()
    inner = Team("inner", responses(tasks(("deep", "dig"), ids=["c1"]), text("dug")).model, members=[member("deep")])
    outer = Team("t1", responses(tasks(("inner", "go"), ids=["c1"]), text("done")).model, members=[inner])
    await book.attempt(outer)
    keys = [_without_ids(key) for key in book.recorded()]
    assert keys == [
        "model.request#1",
        "inner/model.request#1",
        "inner/deep/model.request#1",
        "inner/model.request#2",
        "model.request#2",
    ]


def _without_ids(key: str) -> str:
    return "/".join(part.partition("[")[0] for part in key.split("/"))


async def test_a_workflow_s_steps_are_resumed_its_functions_run_again() -> None:
    book, ran = Book(dies_at=3), Counter[str]()

    def answer(name: str) -> Recorded:
        def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
            ran[name] += 1
            return text(f"{name}: {prompts(messages)[-1]}"[:40])

        return Recorded(respond)

    def look() -> str:
        ran["look"] += 1
        return "looked"

    async def check(turn: Turn) -> str:
        ran["check"] += 1
        return str(await turn.step("look", look, repeatable=True))

    workflow = Workflow("w", [member("one", answer("one").model), check, member("two", answer("two").model)])
    outcome = await book.until_done(workflow)
    assert outcome.status is RunStatus.COMPLETED
    assert (ran["one"], ran["look"], ran["check"], ran["two"]) == (1, 1, 2, 2)


async def test_a_changed_prompt_is_asked_and_said_in_the_log() -> None:
    book, asked = Book(dies_at=3), Counter[str]()

    def agent(instructions: str) -> Executor:
        def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
            asked[instructions] += 1
            if responses_so_far(messages) == 0:
                return ModelResponse(parts=[ToolCallPart("look", {}, tool_call_id=f"c-{instructions}")])
            return text(f"by {instructions}")

        tool = Tool(lambda: "seen", name="look", metadata=_REPEATABLE)
        return SingleAgent(Agent(Recorded(respond).model, name="a", instructions=instructions, tools=[tool]))

    with pytest.raises(LaneLost):
        await book.attempt(agent("old"))
    with capture_logs() as logs:
        outcome = await book.attempt(agent("new"))
    assert outcome.content == "by new"
    assert (asked["old"], asked["new"]) == (2, 2)
    assert [log["step"] for log in logs if log["event"] == "journal_diverged"] == ["model.request#1"]


async def test_an_instruction_that_is_another_each_time_changes_nothing() -> None:
    book, asked, times = Book(dies_at=2), Counter[int](), itertools.count()

    def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        asked[responses_so_far(messages)] += 1
        if responses_so_far(messages) == 0:
            return ModelResponse(parts=[ToolCallPart("look", {}, tool_call_id="c1")])
        return text("done")

    def the_time(_: RunContext[Turn]) -> str:
        return f"It is {next(times)} o'clock."

    tool = Tool(lambda: "seen", name="look", metadata=_REPEATABLE)
    agent = Agent(Recorded(respond).model, name="a", deps_type=Turn, instructions=the_time, tools=[tool])
    with capture_logs() as logs:
        await book.until_done(SingleAgent(agent))
    assert asked[0] == 1
    assert [log for log in logs if log["event"] == "journal_diverged"] == []


async def test_toolsets_of_any_kind_have_their_calls_recorded() -> None:
    book, made = Book(), []

    def tool(name: str) -> Tool[Any]:
        def made_now() -> str:
            made.append(name)
            return name

        return Tool(made_now, name=name)

    called = ModelResponse(parts=[ToolCallPart(name, {}, tool_call_id=name) for name in ("fixed", "made", "renamed_x")])
    agent = Agent(
        responses(called, text("done")).model,
        name="a",
        toolsets=[
            FunctionToolset([tool("fixed")]),
            FunctionToolset([tool("x")]).prefixed("renamed"),
        ],
    )

    @agent.toolset
    def dynamic(_: RunContext[Any]) -> FunctionToolset[Any]:
        return FunctionToolset([tool("made")])

    await book.attempt(SingleAgent(agent))
    await book.attempt(SingleAgent(agent))
    assert sorted(made) == ["fixed", "made", "x"]
    assert sorted(key for key in book.recorded() if "tool:" in key) == [
        "tool:fixed@fixed#1",
        "tool:made@made#1",
        "tool:x@renamed_x#1",
    ]


async def test_results_that_are_models_reach_the_model_the_same_way_again() -> None:
    book, seen = Book(dies_at=4), []

    def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if responses_so_far(messages) == 0:
            return ModelResponse(parts=[ToolCallPart("price", {}, tool_call_id="c1")])
        seen.append([part.model_response_str() for part in messages[-1].parts if isinstance(part, ToolReturnPart)])
        return text("done")

    def price() -> Price:
        return Price(amount=3, currency="EUR")

    await book.until_done(SingleAgent(Agent(Recorded(respond).model, name="a", tools=[price])))
    assert seen == [['{"amount":3,"currency":"EUR"}']] * 2


async def test_without_a_journal_a_team_records_nothing() -> None:
    world = World()
    assert world.team(journal=False).journal is False
    assert world.team().journal is True
    with pytest.raises(ValueError, match="journal is True or False"):
        world.team(journal="no")


async def test_an_answer_s_text_part_comes_again_as_it_was() -> None:
    book = Book(dies_at=2)
    odd = "a\x00b\ud800 ü"
    model = responses(ModelResponse(parts=[TextPart(odd)])).model
    first = await Book().attempt(SingleAgent(Agent(model, name="a")))
    again = await book.until_done(SingleAgent(Agent(model, name="a")))
    assert first.content == again.content


async def test_what_steps_wait_to_be_recorded_is_not_the_team_s_time() -> None:
    outcome = await Book(seconds_each=0.2).attempt(World().team(timeout=0.4))
    assert outcome.status is RunStatus.COMPLETED


async def test_a_team_that_takes_its_time_while_nothing_waits_is_timed_out() -> None:
    async def think(_: RunContext[Turn]) -> str:
        await asyncio.Event().wait()
        return "never"

    thinker = Recorded(lambda *_: ModelResponse(parts=[ToolCallPart("think", {})]))
    outcome = await Book(seconds_each=0.1).attempt(
        SingleAgent(Agent(thinker.model, name="a", tools=[think]), timeout=0.2)
    )
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.TURN_TIMEOUT
