"""Tool calls that need a human's approval: the run pauses, and another one goes on with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pydantic import JsonValue
from pydantic_ai import Agent, ApprovalRequired, RunContext, Tool
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.usage import RequestUsage

from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command, worker_of
from tests.unit.models import Recorded, says, tasks, text
from worker.executors.turn import Turn
from worker.settings import Settings
from worker.team.single_agent import SingleAgent
from worker.team.team import Team
from worker.team.workflow import Workflow

Call = tuple[str, dict[str, Any], str]
"""A tool, its arguments, the call's id."""


def calls(*given: Call) -> ModelResponse:
    """A response that calls tools."""
    parts = [ToolCallPart(tool, arguments, tool_call_id=call_id) for tool, arguments, call_id in given]
    return ModelResponse(parts=parts, usage=RequestUsage(input_tokens=10, output_tokens=2))


def returned(messages: Sequence[ModelMessage]) -> list[Any]:
    """What tools have returned so far, in order."""
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def first(*given: Call) -> Recorded:
    """A model that calls tools, and then answers with what they returned."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        found = returned(messages)
        return text(" and ".join(map(str, found))) if found else calls(*given)

    return Recorded(answer)


class Till:
    """Tools that cost somebody something."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.looked: list[str] = []

    @property
    def pay(self) -> Tool[Turn]:
        def pay(context: RunContext[Turn], amount: int) -> str:
            self.paid.append(amount)
            context.deps.session_state["paid"] = context.deps.session_state.get("paid", 0) + amount
            return f"paid {amount}"

        return Tool(pay, requires_approval=True)

    @property
    def look(self) -> Tool[Turn]:
        async def look(context: RunContext[Turn], item: str) -> str:
            self.looked.append(item)
            context.deps.session_state["looked"] = item
            return f"saw {item}"

        return Tool(look)


def shop(model: Recorded, till: Till, **given: Any) -> SingleAgent:
    """An agent with these tools."""
    agent = Agent(model.model, name="shop", deps_type=Turn, tools=[till.pay, till.look])
    return SingleAgent(agent, **given)


class Producer:
    """Asks one agent in one session."""

    def __init__(self, broker: TestBroker, **target: str) -> None:
        self._broker = broker
        self._target = target or {"agent_id": "shop"}
        self._asked = 0

    async def ask(self, session_id: str = "s1", **fields: Any) -> dict[str, Any]:
        run_id = fields.pop("run_id", None) or f"r{self._asked}"
        self._asked += 1
        await self._broker.publish({"run_id": run_id, "session_id": session_id, **self._target, **fields})
        return await self._broker.reply(run_id)

    async def decide(self, paused: dict[str, Any], *decisions: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return await self.ask(paused["session_id"], continues=paused["run_id"], decisions=list(decisions), **fields)


def approved(call_id: str) -> dict[str, Any]:
    return {"tool_call_id": call_id, "approved": True}


def denied(call_id: str, message: str | None = None) -> dict[str, Any]:
    return {"tool_call_id": call_id, "approved": False} | ({} if message is None else {"message": message})


async def _state(database: asyncpg.Connection) -> dict[str, Any]:
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    return dict(data["session_state"])


async def _nothing_is_left(database: asyncpg.Connection) -> None:
    for table in ("paused_runs", "turn_steps", "turn_attempts"):
        assert await database.fetchval(f"select count(*) from ai.{table}") == 0, table  # noqa: S608


async def test_a_run_pauses_and_the_approved_call_is_made_once_by_the_run_that_continues_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, model = Till(), first(("look", {"item": "tea"}, "c1"), ("pay", {"amount": 5}, "c2"))
    producer = Producer(broker)
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy tea", user_id="u1")
        asked_before = len(model.asked)
        reply = await producer.decide(paused, approved("c2"), user_id="u1")
    assert (paused["status"], paused["content"], paused["turn"], paused["error"]) == ("PAUSED", None, 1, None)
    assert paused["approvals"] == [
        {"tool_call_id": "c2", "tool": "pay", "arguments": {"amount": 5}, "member_id": None, "metadata": None}
    ]
    assert (reply["status"], reply["content"], reply["turn"]) == ("COMPLETED", "saw tea and paid 5", 2)
    assert (till.looked, till.paid) == (["tea"], [5]), "what was recorded is not made again"
    assert asked_before == 1
    assert len(model.asked) == 2
    assert await _state(database) == {"looked": "tea", "paid": 5}
    # What the first run used its own reply has told of.
    assert [(one["metrics"]["model_requests"], one["metrics"]["tool_calls"]) for one in (paused, reply)] == [
        (1, 1),
        (1, 1),
    ]
    data = json.loads(await database.fetchval("select session_data from ai.agno_sessions"))
    assert data["session_metrics"]["input_tokens"] == 20
    await _nothing_is_left(database)


async def test_the_two_runs_are_stored_and_the_history_has_the_question_and_the_answer_once(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, model, producer = Till(), first(("pay", {"amount": 5}, "c1")), Producer(broker)
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy tea")
        reply = await producer.decide(paused, approved("c1"))
        await producer.ask(input="and now?")
    rows = await database.fetch("select run_id, status, run_data from ai.agno_runs order by run_index")
    assert [(row["run_id"], row["status"]) for row in rows][:2] == [
        (paused["run_id"], "PAUSED"),
        (reply["run_id"], "COMPLETED"),
    ]
    one, two = (json.loads(row["run_data"]) for row in rows[:2])
    assert [call["tool_call_id"] for call in one["approvals"]] == ["c1"]
    assert (two["continues"], two["decisions"][0]["approved"]) == (paused["run_id"], True)
    assert two["input"]["input_content"] == "buy tea"
    said = [part.content for message in model.asked[-1] for part in message.parts if hasattr(part, "content")]
    assert said == ["buy tea", "paid 5", "and now?"]


async def test_a_denied_call_is_not_made_and_the_model_is_told_why(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    model = first(("pay", {"amount": 5}, "c1"), ("pay", {"amount": 6}, "c2"), ("pay", {"amount": 7}, "c3"))
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, denied("c1", "too dear"), approved("c2"), denied("c3"))
    assert till.paid == [6]
    assert reply["content"] == "too dear and paid 6 and The tool call was denied."


async def test_what_is_not_decided_is_asked_for_again(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    model = first(("pay", {"amount": 5}, "c1"), ("pay", {"amount": 6}, "c2"))
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy")
        again = await producer.decide(paused, approved("c2"))
        paid_before = list(till.paid)
        reply = await producer.decide(again, approved("c1"))
    assert [call["tool_call_id"] for call in again["approvals"]] == ["c1"]
    assert (again["status"], paid_before) == ("PAUSED", [])
    assert reply["content"] == "paid 5 and paid 6"
    assert till.paid == [5, 6]


async def test_a_run_can_pause_again_and_a_call_id_that_is_used_again_is_asked_for_again(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker)

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        done = len(returned(messages))
        return text("all paid") if done == 3 else calls(("pay", {"amount": done}, "same"))

    model = Recorded(answer)
    replies = []
    async with worker_of(settings, shop(model, till)):
        replies.append(await producer.ask(input="buy"))
        for _ in range(3):
            replies.append(await producer.decide(replies[-1], approved("same")))
    assert [reply["status"] for reply in replies] == ["PAUSED"] * 3 + ["COMPLETED"]
    assert till.paid == [0, 1, 2]
    assert len(model.asked) == 4, "no request to the model was made twice"
    assert [reply["metrics"]["model_requests"] for reply in replies] == [1] * 4
    assert (await _state(database))["paid"] == 3
    await _nothing_is_left(database)


async def test_a_tool_can_ask_for_approval_while_it_runs(settings: Settings, broker: TestBroker) -> None:
    paid, producer = list[int](), Producer(broker)

    def pay(context: RunContext[Turn], amount: int) -> str:
        if amount > 10 and not context.tool_call_approved:
            raise ApprovalRequired(metadata={"reason": "dear"})
        paid.append(amount)
        return f"paid {amount}"

    model = first(("pay", {"amount": 5}, "c1"), ("pay", {"amount": 50}, "c2"))
    agent = Agent(model.model, name="shop", deps_type=Turn, tools=[pay])
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c2"))
    assert [(call["tool_call_id"], call["metadata"]) for call in paused["approvals"]] == [("c2", {"reason": "dear"})]
    assert paid == [5, 50]
    assert reply["content"] == "paid 5 and paid 50"


def _clerk(name: str, till: Till, *given: Call) -> Agent[Turn, str]:
    return Agent(first(*given).model, name=name, deps_type=Turn, tools=[till.pay, till.look])


async def test_members_pause_side_by_side_and_nothing_of_the_others_is_lost(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker, team_id="market")
    leader = Recorded(
        lambda messages, _: (
            text(", ".join(map(str, found)))
            if (found := returned(messages))
            else tasks(("ann", "buy"), ("bob", "buy"), ("cat", "look"), ids=["t1", "t2", "t3"])
        )
    )
    members = [
        _clerk("ann", till, ("pay", {"amount": 1}, "c1")),
        _clerk("bob", till, ("pay", {"amount": 2}, "c1")),
        _clerk("cat", till, ("look", {"item": "tea"}, "c1")),
    ]
    async with worker_of(settings, Team("market", leader.model, members=members)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"), denied("c1#2", "no"))
    assert [(call["tool_call_id"], call["member_id"]) for call in paused["approvals"]] == [
        ("c1", "ann"),
        ("c1#2", "bob"),
    ]
    assert {one["member_id"]: one["status"] for one in paused["member_responses"]} == {
        "ann": "PAUSED",
        "bob": "PAUSED",
        "cat": "COMPLETED",
    }
    assert reply["content"] == "paid 1, no, saw tea"
    assert {one["member_id"]: one["status"] for one in reply["member_responses"]} == dict.fromkeys(
        ("ann", "bob", "cat"), "COMPLETED"
    )
    assert (till.paid, till.looked) == ([1], ["tea"])
    assert len(leader.asked) == 2
    # Each run has rows of its own.
    assert await database.fetchval("select count(distinct run_id) from ai.agno_runs") == 8
    await _nothing_is_left(database)


@pytest.mark.parametrize("mode", ["broadcast", "route"])
async def test_members_pause_in_every_mode(settings: Settings, broker: TestBroker, mode: Any) -> None:
    till, producer = Till(), Producer(broker, team_id="market")

    def lead(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        if mode == "route":
            return calls(("route_to_member", {"member_id": "ann"}, "t1"))
        return text("summed up")

    members = [_clerk("ann", till, ("pay", {"amount": 1}, "c1")), _clerk("bob", till, ("look", {"item": "tea"}, "c2"))]
    leader = Recorded(lead)
    async with worker_of(settings, Team("market", leader.model, members=members, mode=mode)):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"))
    assert [call["member_id"] for call in paused["approvals"]] == ["ann"]
    assert reply["content"] == ("paid 1" if mode == "route" else "summed up")
    assert till.paid == [1]
    assert till.looked == ([] if mode == "route" else ["tea"])


async def test_a_member_of_a_nested_team_pauses_the_whole_turn(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker, team_id="outer")
    inner_leader = first(("delegate_task", {"member_id": "ann", "task": "buy"}, "t1"))
    inner = Team("inner", inner_leader.model, members=[_clerk("ann", till, ("pay", {"amount": 1}, "c1"))])
    outer_leader = first(("delegate_task", {"member_id": "inner", "task": "buy"}, "t1"))
    async with worker_of(settings, Team("outer", outer_leader.model, members=[inner])):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"))
    assert [call["member_id"] for call in paused["approvals"]] == ["ann"]
    assert reply["content"] == "paid 1"
    assert (len(inner_leader.asked), len(outer_leader.asked), till.paid) == (2, 2, [1])


async def test_a_step_of_a_workflow_pauses_and_the_steps_before_it_are_not_made_again(
    settings: Settings, broker: TestBroker
) -> None:
    till, producer, begun = Till(), Producer(broker, workflow_id="orders"), list[str]()

    async def check(turn: Turn) -> JsonValue:
        return await turn.step("check", lambda: begun.append(turn.run_id))  # type: ignore[no-any-return]

    flow = Workflow("orders", [check, _clerk("ann", till, ("pay", {"amount": 1}, "c1"))])
    async with worker_of(settings, flow):
        paused = await producer.ask(input="buy")
        reply = await producer.decide(paused, approved("c1"))
    assert [(one["member_id"], one["status"]) for one in paused["member_responses"]][-1] == ("ann", "PAUSED")
    assert (reply["content"], begun, till.paid) == ("paid 1", [paused["run_id"]], [1])


async def test_other_requests_go_on_meanwhile_and_their_state_is_kept(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker)
    model = first(("look", {"item": "tea"}, "c1"), ("pay", {"amount": 5}, "c2"))
    async with worker_of(settings, shop(model, till)):
        paused = await producer.ask(input="buy")
        between = await producer.ask(input="hello", session_state={"looked": "coffee", "other": 1})
        reply = await producer.decide(paused, approved("c2"))
    assert (between["status"], between["turn"]) == ("PAUSED", 2), "the model asks for the same again"
    assert reply["status"] == "COMPLETED"
    assert await _state(database) == {"looked": "tea", "other": 1, "paid": 5}, "the other turn came after the first"


async def test_a_team_can_refuse_other_requests_meanwhile(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till, while_paused="refuse")):
        paused = await producer.ask(input="buy")
        refused = await producer.ask(input="hello")
        elsewhere = await producer.ask("s2", input="buy")
        reply = await producer.decide(paused, approved("c1"))
        after = await producer.ask(input="hello")
    assert (refused["status"], refused["error"]["code"], refused["error"]["retryable"]) == (
        "REJECTED",
        "session_paused",
        True,
    )
    assert elsewhere["status"] == "PAUSED"
    assert reply["status"] == "COMPLETED"
    assert after["status"] == "PAUSED", "it was taken"


async def test_one_that_fails_can_be_continued_again_and_makes_nothing_again(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer, broken = Till(), Producer(broker), [True]

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if not returned(messages):
            return calls(("pay", {"amount": 5}, "c1"))
        if broken:
            raise RuntimeError
        return text("done")

    async with worker_of(settings, shop(Recorded(answer), till)):
        paused = await producer.ask(input="buy")
        failed = await producer.decide(paused, approved("c1"))
        state_after_failure = await _state(database)
        broken.clear()
        reply = await producer.decide(paused, approved("c1"))
        late = await producer.decide(paused, approved("c1"))
    assert failed["status"] == "ERROR"
    assert state_after_failure == {}, "a failed turn changes no state"
    assert reply["content"] == "done"
    assert till.paid == [5]
    assert await _state(database) == {"paid": 5}
    assert [one["metrics"]["tool_calls"] for one in (paused, failed, reply)] == [0, 1, 0]
    assert late["error"]["code"] == "run_not_paused"
    await _nothing_is_left(database)


async def test_a_worker_that_dies_while_it_continues_makes_the_approved_call_once(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer, reached = Till(), Producer(broker), asyncio.Event()

    async def wait(context: RunContext[Turn]) -> str:
        if context.deps.attempt == 1:
            reached.set()
            await asyncio.Event().wait()
        return "waited"

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        match len(returned(messages)):
            case 0:
                return calls(("pay", {"amount": 5}, "c1"))
            case 1:
                return calls(("wait", {}, "c2"))
            case _:
                return text("done")

    model = Recorded(answer)
    repeatable = Tool(wait, metadata={"teamturn": {"repeatable": True}})
    agent = SingleAgent(Agent(model.model, name="shop", deps_type=Turn, tools=[till.pay, repeatable]))
    async with worker_of(settings, agent):
        paused = await producer.ask(input="buy")
        deciding = asyncio.create_task(producer.decide(paused, approved("c1"), run_id="again"))
        await reached.wait()
        assert await database.fetchval("select continued_by from ai.paused_runs") == "again"
    async with worker_of(settings, agent):
        reply = await deciding
    assert (reply["content"], reply["attempt"]) == ("done", 2)
    assert till.paid == [5]
    assert len(model.asked) == 3
    assert await _state(database) == {"paid": 5}
    await _nothing_is_left(database)


async def test_the_same_continuation_again_gets_the_same_reply(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till)):
        paused = await producer.ask(input="buy")
        for _ in range(2):
            await producer.decide(paused, approved("c1"), run_id="again")
        await eventually(lambda: len(broker.replies) == 3)
    assert broker.replies[1].body == broker.replies[2].body
    assert till.paid == [5]


Wrong = Callable[[Producer, dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (lambda producer, paused: producer.decide(paused, approved("c9"), user_id="u1"), "decision_unknown"),
        (lambda producer, paused: producer.decide(paused, approved("c1"), user_id="u2"), "session_forbidden"),
        (
            lambda producer, paused: producer.decide(paused | {"session_id": "s2"}, approved("c1"), user_id="u2"),
            "run_not_paused",
        ),
        (
            lambda producer, paused: producer.decide(paused | {"run_id": "none"}, approved("c1"), user_id="u1"),
            "run_not_paused",
        ),
    ],
    ids=["another call", "another user", "another session", "another run"],
)
async def test_who_decides_wrongly_is_told_so_and_the_run_stays_paused(
    settings: Settings, broker: TestBroker, asked: Wrong, code: str
) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till)):
        paused = await producer.ask(input="buy", user_id="u1")
        await producer.ask("s2", input="buy", user_id="u2")
        refused = await asked(producer, paused)
        reply = await producer.decide(paused, approved("c1"), user_id="u1")
    assert (refused["status"], refused["error"]["code"]) == ("REJECTED", code)
    assert reply["status"] == "COMPLETED"
    assert till.paid == [5]


async def test_a_pause_expires(settings: Settings, broker: TestBroker, database: asyncpg.Connection) -> None:
    till, producer = Till(), Producer(broker)
    agent = shop(first(("pay", {"amount": 5}, "c1")), till, pause_timeout=0.2, while_paused="refuse")
    async with worker_of(settings, agent):
        paused = await producer.ask(input="buy")
        expired = "select expires_at < now() from ai.paused_runs"
        await eventually(lambda: database.fetchval(expired))
        reply = await producer.decide(paused, approved("c1"))
        after = await producer.ask(input="hello")
        # What it held is dropped a day later, by one that pauses.
        await database.execute("update ai.paused_runs set expires_at = expires_at - interval '1 day 1 minute'")
        await producer.ask("s2", input="buy")
        left = await database.fetch("select run_id from ai.turn_steps group by run_id")
        late = await producer.decide(paused, approved("c1"))
    assert reply["error"]["code"] == late["error"]["code"] == "pause_expired"
    assert after["status"] == "PAUSED", "nobody is waited for any more"
    assert paused["run_id"] not in {row["run_id"] for row in left}
    assert till.paid == []


async def test_a_cancelled_continuation_is_the_end_of_it(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    producer, reached = Producer(broker), asyncio.Event()

    async def pay(amount: int) -> str:
        reached.set()
        await asyncio.Event().wait()
        return f"never {amount}"

    model = first(("pay", {"amount": 5}, "c1"))
    agent = Agent(model.model, name="shop", deps_type=Turn, tools=[Tool(pay, requires_approval=True)])
    async with worker_of(settings, SingleAgent(agent)):
        paused = await producer.ask(input="buy")
        deciding = asyncio.create_task(producer.decide(paused, approved("c1"), run_id="again"))
        await reached.wait()
        said = {"type": "cancel", "run_id": "again", "session_id": "s1"}
        await broker.publish(said, exchange=f"{broker.prefix}.control", routing_key="")
        reply = await deciding
        late = await producer.decide(paused, approved("c1"))
    assert reply["status"] == "CANCELLED"
    assert late["error"]["code"] == "run_not_paused"
    await _nothing_is_left(database)


async def test_a_deleted_session_leaves_nothing_of_its_pauses(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection
) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till)):
        paused = await producer.ask(input="buy")
        code, _, error = await run_command("sessions", "delete", "s1", "--yes", environment=environment_of(settings))
        assert code == 0, error
        await _nothing_is_left(database)
        reply = await producer.decide(paused, approved("c1"))
    assert reply["error"]["code"] == "run_not_paused"


async def test_without_a_journal_a_run_that_would_pause_fails(settings: Settings, broker: TestBroker) -> None:
    till, producer = Till(), Producer(broker)
    async with worker_of(settings, shop(first(("pay", {"amount": 5}, "c1")), till, journal=False)):
        reply = await producer.ask(input="buy")
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "executor_failed")
    assert "journal=False" in reply["error"]["message"]


async def test_requests_that_joined_a_turn_pause_with_it(settings: Settings, broker: TestBroker) -> None:
    till, started, go = Till(), asyncio.Event(), asyncio.Event()

    async def hold(_: RunContext[Turn]) -> str:
        started.set()
        await go.wait()
        return "held"

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if "first" in str(messages[-1].parts[-1]):
            return calls(("hold", {}, "c0"))
        return text("done") if returned(messages)[-1:] not in ([], ["held"]) else calls(("pay", {"amount": 5}, "c1"))

    model = Recorded(lambda m, i: text("held") if returned(m)[-1:] == ["held"] else answer(m, i))
    agent = Agent(model.model, name="shop", deps_type=Turn, tools=[till.pay, hold])
    asked = {"session_id": "s1", "agent_id": "shop", "on_busy": "coalesce"}
    async with worker_of(settings, SingleAgent(agent, history_runs=0)) as worker:
        await broker.publish(asked | {"run_id": "r0", "input": "first"})
        await started.wait()
        for run_id in ("r1", "r2"):
            await broker.publish(asked | {"run_id": run_id, "input": run_id})
        await eventually(lambda: len(worker.mailboxes) == 3)
        go.set()
        one, two = [await broker.reply(run_id) for run_id in ("r1", "r2")]
        decided = {"run_id": "r3", "continues": two["answered_by"], "decisions": [approved("c1")]}
        await broker.publish(asked | decided)
        reply = await broker.reply("r3")
    assert (one["status"], two["status"], two["answered_by"]) == ("PAUSED", "PAUSED", "r1")
    assert two["approvals"] == one["approvals"]
    assert (reply["content"], till.paid) == ("done", [5])


def test_a_setting_that_can_t_be_ends_the_start_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="while_paused is"):
        SingleAgent(Agent(says("x"), name="a"), while_paused="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pause_timeout is"):
        Team("t", says("x"), pause_timeout=-1)
    with pytest.raises(ValueError, match="at most ten years"):
        Team("t", says("x"), pause_timeout=1e12)


async def test_a_watched_call_is_told_when_it_is_made_and_not_while_it_waits_or_is_denied(
    settings: Settings, broker: TestBroker
) -> None:
    events: list[dict[str, Any]] = []

    async def stream(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        if found := returned(messages):
            yield " and ".join(map(str, found))
            return
        for number, amount in enumerate((5, 6)):
            yield {number: DeltaToolCall("pay", json.dumps({"amount": amount}), tool_call_id=f"c{amount}")}

    async def received(message: AbstractIncomingMessage) -> None:
        events.append(json.loads(message.body))

    till, producer = Till(), Producer(broker)
    agent = Agent(FunctionModel(stream_function=stream), name="shop", deps_type=Turn, tools=[till.pay])
    async with worker_of(settings, SingleAgent(agent)):
        queue = await broker.channel.declare_queue(exclusive=True)
        await queue.bind(f"{broker.prefix}.events", "#")
        await queue.consume(received, no_ack=True)
        paused = await producer.ask(input="buy", stream=True)
        reply = await producer.decide(paused, approved("c5"), denied("c6", "too dear"), stream=True)
        await eventually(lambda: [one["type"] for one in events].count("run_finished") == 2)
    first, second = ([one for one in events if one["run_id"] == reply["run_id"]] for reply in (paused, reply))
    assert [one["type"] for one in first] == ["run_started", "run_finished"]
    assert first[-1]["reply"] == paused
    assert [one["type"] for one in second] == [
        *("run_started", "tool_call_started", "state_changed", "tool_call_finished", "content_delta", "run_finished"),
    ]
    assert (second[0]["resumed_behind"], second[1]["call_id"], till.paid) == ("model.request#1", "c5", [5])
