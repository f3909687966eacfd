"""Pauses where something goes wrong, or somebody means harm: nothing is made that nobody has approved."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel, JsonValue
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.output import ToolOutput
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import UsageLimits

import sql
from tests.integration.test_pauses import (
    Producer,
    Till,
    _clerk,
    _nothing_is_left,
    _state,
    approved,
    calls,
    denied,
    first,
    returned,
    shop,
)
from tests.support.broker import TestBroker
from tests.support.workers import worker_of
from tests.unit.models import Recorded, text
from worker.errors import LaneLost
from worker.executors.turn import Turn
from worker.sessions.lanes import LaneConnection
from worker.settings import Settings
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Workflow


async def test_a_continuation_that_is_refused_after_it_was_begun_leaves_the_run_paused(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer, reached = Till(), Producer(broker), asyncio.Event()

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        match len(returned(messages)):
            case 0:
                return calls(("look", {"item": "tea"}, "c0"), ("pay", {"amount": 5}, "c1"))
            case 2:
                return calls(("wait", {}, "c2"))
            case _:
                return text("done")

    hanging = [True]

    async def wait() -> str:
        if hanging:
            reached.set()
            await asyncio.Event().wait()
        return "waited"

    again = Tool(wait, metadata={"teamturn": {"repeatable": True}})
    agent = SingleAgent(Agent(Recorded(answer).model, name="shop", deps_type=Turn, tools=[till.pay, till.look, again]))
    async with worker_of(settings, agent):
        paused = await producer.ask(input="buy")
        deciding = asyncio.create_task(producer.decide(paused, approved("c1"), run_id="again"))
        await reached.wait()
    async with worker_of(settings):
        refused = await deciding
    hanging.clear()
    async with worker_of(settings, agent):
        reply = await producer.decide(paused, approved("c1"))
    assert (refused["status"], refused["error"]["code"]) == ("REJECTED", "unknown_target")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "done")
    assert (till.looked, till.paid) == (["tea"], [5])
    await _nothing_is_left(database)


async def test_an_approval_is_of_the_arguments_that_were_shown(settings: Settings, broker: TestBroker) -> None:
    till, producer, times = Till(), Producer(broker), list[int]()

    def now() -> int:
        times.append(len(times) + 1)
        return times[-1]

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        match found := returned(messages):
            case []:
                return calls(("now", {}, "c0"))
            case [time]:
                return calls(("pay", {"amount": time}, "functions.pay:0"))
            case _:
                return text(str(found))

    # In no journal: it is called in each attempt, and what comes of it is asked about anew.
    agent = Agent(
        Recorded(answer).model,
        name="shop",
        deps_type=Turn,
        tools=[till.pay, Tool(now, metadata={"teamturn": False})],
    )
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        again = await producer.decide(paused, approved("functions.pay:0"))
    assert [one["arguments"] for one in paused["approvals"]] == [{"amount": 1}]
    assert till.paid == []
    assert (again["status"], [one["arguments"] for one in again["approvals"]]) == ("PAUSED", [{"amount": 2}])


async def test_a_call_that_was_made_is_not_called_denied(settings: Settings, broker: TestBroker) -> None:
    till, producer, broken = Till(), Producer(broker), [True]

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if not returned(messages):
            return calls(("pay", {"amount": 5}, "c1"))
        if broken:
            raise RuntimeError
        return text(str(returned(messages)[0]))

    async with worker_of(settings, shop(Recorded(answer), till)):
        paused = await producer.ask(input="buy")
        failed = await producer.decide(paused, approved("c1"))
        broken.clear()
        reply = await producer.decide(paused, denied("c1"))
    assert (failed["status"], till.paid) == ("ERROR", [5])
    assert reply["content"] == "paid 5"


async def test_an_agent_s_own_handler_of_deferred_calls_comes_first(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)

    async def small_ones(_: RunContext[Turn], requests: DeferredToolRequests) -> DeferredToolResults:
        small = [call for call in requests.approvals if call.args_as_dict()["amount"] < 10]
        return DeferredToolResults(approvals={call.tool_call_id: True for call in small})

    model = first(("pay", {"amount": 5}, "c1"), ("pay", {"amount": 50}, "c2"))
    agent = Agent(
        model.model,
        name="shop",
        deps_type=Turn,
        tools=[till.pay],
        capabilities=[HandleDeferredToolCalls(handler=small_ones)],
    )
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c2"))
    assert [one["tool_call_id"] for one in paused["approvals"]] == ["c2"]
    assert reply["content"] == "paid 5 and paid 50"
    assert till.paid == [5, 50]


class Answer(BaseModel):
    told: str


@pytest.mark.parametrize("end_strategy", ["early", "graceful", "exhaustive"])
async def test_an_answer_beside_a_call_that_needs_approval_ends_the_run_without_it(
    settings: Settings, broker: TestBroker, end_strategy: Any
) -> None:
    till, producer = Till(), Producer(broker)

    def answer(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        return calls(("pay", {"amount": 5}, "c1"), ("final", {"told": "all"}, "c2"))

    agent = Agent(
        Recorded(answer).model,
        name="shop",
        deps_type=Turn,
        tools=[till.pay],
        output_type=ToolOutput(Answer, name="final"),
        end_strategy=end_strategy,
    )
    async with worker_of(settings, SingleAgent(agent)):
        reply = await producer.ask(input="buy")
    # As pydantic-ai has it: the answer ends the run, and the call is not made.
    assert (reply["status"], reply["content"], till.paid) == ("COMPLETED", {"told": "all"}, [])


async def test_a_toolset_that_needs_approval(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker)

    def pay(amount: int) -> str:
        till.paid.append(amount)
        return f"paid {amount}"

    toolset = FunctionToolset[Turn]([pay]).approval_required(lambda _c, _t, args: args["amount"] > 5)
    model = first(("pay", {"amount": 5}, "c1"), ("pay", {"amount": 50}, "c2"), ("pay", {"amount": 60}, "c3"))
    agent = Agent(model.model, name="shop", deps_type=Turn, toolsets=[toolset])
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c2"), denied("c3"))
    assert [one["tool_call_id"] for one in paused["approvals"]] == ["c2", "c3"]
    assert reply["content"] == "paid 5 and paid 50 and The tool call was denied."
    await _nothing_is_left(database)


async def test_a_session_that_agno_deleted_leaves_its_pauses_to_nobody(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till, while_paused="refuse")):
        paused = await producer.ask(input="a secret", user_id="u1")
        await database.execute("delete from ai.agno_sessions")
        mine = await producer.ask(input="hello", user_id="u2")
        late = await producer.decide(paused, approved("c1"), user_id="u2")
        done = await producer.decide(mine, denied("c1"), user_id="u2")
        after = await producer.ask(input="hello", user_id="u2")
    assert (late["status"], late["error"] and late["error"]["code"]) == ("REJECTED", "run_not_paused")
    assert done["status"] == "COMPLETED"
    assert after["status"] == "PAUSED", "nobody's decision is waited for"
    assert till.paid == []


async def test_members_whose_failures_are_tolerated_pause_beside_one_that_fails(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker, team_id="outer")
    failures = []

    def fail(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        failures.append(1)
        raise RuntimeError

    bad = Agent(Recorded(fail).model, name="bad", deps_type=Turn)
    inner_leader = first(
        ("delegate_task", {"member_id": "ann", "task": "buy"}, "t1"),
        ("delegate_task", {"member_id": "bad", "task": "buy"}, "t2"),
    )
    inner = Team(
        "inner",
        inner_leader.model,
        members=[_clerk("ann", till, ("pay", {"amount": 1}, "c1")), bad],
        tolerate_member_failures=True,
    )
    outer_leader = first(("delegate_task", {"member_id": "inner", "task": "buy"}, "t1"))
    outer = Team("outer", outer_leader.model, members=[inner], tolerate_member_failures=True)
    async with worker_of(settings, outer):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"))
    assert reply["content"].startswith("paid 1 and This member has failed")
    assert till.paid == [1]
    assert len(failures) == 1
    await _nothing_is_left(database)


async def test_the_usage_limits_are_of_the_turn_with_its_pauses(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    model = first(("pay", {"amount": 5}, "c1"))
    async with worker_of(settings, shop(model, till, usage_limits=UsageLimits(request_limit=2))):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"))
    assert reply["status"] == "COMPLETED"


async def test_a_lane_that_is_lost_in_the_approved_call_makes_it_once(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    producer, paid = Producer(broker), list[int]()
    reached, go = asyncio.Event(), asyncio.Event()

    async def pay(context: RunContext[Turn], amount: int) -> str:
        reached.set()
        await go.wait()
        paid.append(amount)
        context.deps.session_state["paid"] = context.deps.session_state.get("paid", 0) + amount
        return f"paid {amount}"

    model = first(("pay", {"amount": 5}, "c1"))
    agent = SingleAgent(Agent(model.model, name="shop", deps_type=Turn, tools=[Tool(pay, requires_approval=True)]))
    async with worker_of(settings, agent):
        paused = await producer.ask(input="buy")
        deciding = asyncio.create_task(producer.decide(paused, approved("c1")))
        await reached.wait()
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'teamturn lane%'"
        )
        go.set()
        reply = await deciding
    assert (reply["status"], reply["content"], paid) == ("COMPLETED", "paid 5", [5])
    assert await _state(database) == {"paid": 5}
    await _nothing_is_left(database)


async def test_what_a_function_of_a_workflow_changes_in_the_state_is_changed_once(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer, called = Till(), Producer(broker, workflow_id="orders"), list[str]()

    async def count(turn: Turn) -> JsonValue:
        called.append("count")
        turn.session_state["count"] = turn.session_state.get("count", 0) + 1
        await turn.step("add", lambda: turn.session_state.update(added=turn.session_state.get("added", 0) + 1))
        return None

    async def finish(turn: Turn) -> JsonValue:
        turn.session_state["finished"] = turn.session_state.get("finished", 0) + 1
        if called.count("finish") < 2:
            called.append("finish")
            raise ValueError
        return None

    flow = Workflow("orders", [count, _clerk("ann", till, ("pay", {"amount": 1}, "c1")), finish])
    async with worker_of(settings, flow):
        paused = await producer.ask(input="buy")
        failed = [await producer.decide(paused, approved("c1")) for _ in range(2)]
        await producer.decide(paused, approved("c1"))
    assert [one["status"] for one in failed] == ["ERROR", "ERROR"]
    assert await _state(database) == {"count": 1, "added": 1, "paid": 1, "finished": 1}
    assert till.paid == [1]


@pytest.mark.parametrize("applied", [True, False])
async def test_a_pause_whose_commit_is_lost_is_settled_by_the_next_claim(
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    *,
    applied: bool,
) -> None:
    till, producer, lost = Till(), Producer(broker), list[str]()
    fetch = LaneConnection._fetch

    async def answer_lost(lane: LaneConnection, text: str, *arguments: object) -> list[asyncpg.Record]:
        if text != sql.COMMIT_TURNS or lost:
            return await fetch(lane, text, *arguments)
        lost.append(text)
        if applied:
            await fetch(lane, text, *arguments)
        lane.connection.terminate()
        raise LaneLost("the answer to the commit is lost")

    monkeypatch.setattr(LaneConnection, "_fetch", answer_lost)
    model = first(("look", {"item": "tea"}, "c1"), ("pay", {"amount": 5}, "c2"))
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c2"))
    assert lost
    assert (paused["status"], reply["content"]) == ("PAUSED", "saw tea and paid 5")
    assert (till.looked, till.paid, len(model.asked)) == (["tea"], [5], 2)
    await _nothing_is_left(database)


async def test_a_continuation_that_follows_one_whose_worker_died_tells_what_that_one_made(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer, reached, hanging = Till(), Producer(broker), asyncio.Event(), [True]

    async def wait() -> str:
        if hanging:
            reached.set()
            await asyncio.Event().wait()
        return "waited"

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        match found := returned(messages):
            case []:
                return calls(("pay", {"amount": 5}, "c1"))
            case [_]:
                return calls(("wait", {}, "c2"))
            case _:
                return text(str(found))

    again = Tool(wait, metadata={"teamturn": {"repeatable": True}})
    agent = SingleAgent(Agent(Recorded(answer).model, name="shop", deps_type=Turn, tools=[till.pay, again]))
    async with worker_of(settings, agent):
        paused = await producer.ask(input="buy")
        deciding = asyncio.create_task(producer.decide(paused, approved("c1"), run_id="again"))
        await reached.wait()
    hanging.clear()
    # By another prefix: in this one's queue it would come behind.
    other = settings.model_copy(update={"prefix": f"{settings.prefix}-other"})
    async with TestBroker(other.amqp_url.get_secret_value(), other.prefix) as second:
        async with worker_of(other, agent):
            reply = await Producer(second).decide(paused, denied("c1"), run_id="third")
        await second.delete_everything(other.partitions)
    async with worker_of(settings, agent):
        late = await deciding
    assert reply["content"] == "['paid 5', 'waited']"
    assert late["error"]["code"] == "run_not_paused"
    assert till.paid == [5]
    assert await _state(database) == {"paid": 5}
    await _nothing_is_left(database)


@pytest.mark.parametrize("asked_for", ["by the tool's mark", "by its toolset"])
async def test_an_approved_call_is_made_once_though_its_tool_is_in_no_journal(
    settings: Settings, broker: TestBroker, asked_for: str
) -> None:
    producer, paid = Producer(broker), list[int]()

    def pay(amount: int) -> str:
        paid.append(amount)
        return f"paid {amount}"

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        done = len(returned(messages))
        return calls(("pay", {"amount": done}, f"c{done}")) if done < 2 else text("done")

    marked = asked_for == "by the tool's mark"
    toolset = FunctionToolset[Turn]([Tool(pay, requires_approval=marked, metadata={"teamturn": False})])
    toolsets = [toolset if marked else toolset.approval_required()]
    agent = Agent(Recorded(answer).model, name="shop", deps_type=Turn, toolsets=toolsets)
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        again = await producer.decide(paused, approved("c0"))
        reply = await producer.decide(again, approved("c1"))
    assert (again["status"], reply["content"], paid) == ("PAUSED", "done", [0, 1])
