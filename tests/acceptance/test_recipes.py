"""The recipes of deploy/examples/recipes.py as they stand, each in turns of a worker process.

The models that they name, OpenAI's, are played by a server here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import pytest_asyncio

from tests.acceptance.stage import Stage, json_of, staged
from tests.support.model_server import Answer, Asked, Calls, Fails, ModelServer, Says, Waits
from tests.support.waiting import eventually
from tests.support.workers import ROOT
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
Player = Callable[[Asked], Answer]

FIRST, SECOND = "gpt-5-mini", "gpt-5-nano"
"""The models that the recipes name, where the environment names no others."""
SOON = Fails(503, headers={"Retry-After": "0"})


def nobody(asked: Asked) -> Answer:
    raise AssertionError(f"a model is asked that no test plays: {asked.body}")


class Models:
    """The models of all recipes, played by one test after the other."""

    def __init__(self) -> None:
        self.player: Player = nobody
        self.server = ModelServer(self._answer)

    def _answer(self, asked: Asked) -> Answer:
        return self.player(asked)


class Rates:
    """Where the rates come from: each request is answered as it is told, or never."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The first line of each request."""
        self.answer: bytes | None = b""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/latest"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode().splitlines()[0])
        if self.answer is not None:
            status = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(status + b"Content-Length: %d\r\n\r\n%s" % (len(self.answer), self.answer))
        else:
            await reader.read()  # until who asked has gone
        writer.close()


@dataclass
class Kitchen:
    """A running worker with all recipes, and one test's hand on its models."""

    stage: Stage
    models: Models
    rates: Rates
    session: str = field(default_factory=lambda: f"session-{uuid.uuid4().hex[:12]}")

    def play(self, player: Player) -> None:
        """Answer for the models from now on."""
        self.models.server.asked.clear()
        self.models.player = player

    @property
    def asked(self) -> list[Asked]:
        return self.models.server.asked

    async def send(self, recipe: str, text: str, *, kind: str = "team_id", session: str | None = None) -> str:
        run_id = str(uuid.uuid4())
        request = {"run_id": run_id, "session_id": session or self.session, kind: recipe, "input": text}
        await self.stage.broker.publish(request)
        return run_id

    async def ask(self, recipe: str, text: str, *, kind: str = "team_id") -> Json:
        return await self.stage.broker.reply(await self.send(recipe, text, kind=kind))

    async def stored(self) -> Json:
        """The session's state and summary."""
        row = await self.stage.database.fetchrow(
            "select session_data -> 'session_state' as state, summary from ai.sessions where session_id = $1",
            self.session,
        )
        assert row is not None
        return {name: None if value is None else json_of(value) for name, value in row.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stage, Models, Rates]]:
    models = Models()
    async with models.server, Rates() as rates:
        environment = {
            "OPENAI_API_KEY": "sk-none",
            "OPENAI_BASE_URL": models.server.url,
            "RATES_URL": rates.url,
            "TEAMTURN_LOG_LEVEL": "debug",  # summary_written among the events
        }
        folder = tmp_path_factory.mktemp("gates")
        examples = ROOT / "deploy" / "examples"
        async with staged(
            sandbox, template, folder, teams="recipes:teams", cwd=examples, environment=environment
        ) as stage:
            yield stage, models, rates


@pytest_asyncio.fixture(loop_scope="module")
async def kitchen(running: tuple[Stage, Models, Rates]) -> AsyncIterator[Kitchen]:
    stage, models, rates = running
    yield Kitchen(stage, models, rates)
    models.player = nobody


def told(asked: Asked) -> str:
    """Who is asked, by what it is told to do."""
    parts = {
        "leader": "You lead a team",
        "billing": "questions about bills",
        "technical": "technical problems",
        "optimist": "speaks for it",
        "sceptic": "speaks against it",
        "researcher": "List what is known",
        "author": "Write 200 words",
        "editor": "Correct the text",
        "summary": "Write a summary",
    }
    return next((name for name, text in parts.items() if text in asked.instructions), "alone")


# support


def at_the_desk(asked: Asked) -> Answer:
    if told(asked) == "leader":
        return Calls(("route_to_member", {"member_id": "technical"}))
    return Says("Start it again.")


async def test_support_gives_the_question_to_the_specialist_who_answers(kitchen: Kitchen) -> None:
    kitchen.play(at_the_desk)
    reply = await kitchen.ask("support", "The app does not start.")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "Start it again.")
    assert reply["member_responses"] == [
        {"member_id": "technical", "content": "Start it again.", "status": "COMPLETED"}
    ]
    assert [told(one) for one in kitchen.asked] == ["leader", "technical"]
    leader, member = kitchen.asked
    for expected in ("billing: Invoices", "technical: Errors", "A question about both goes to billing."):
        assert expected in leader.instructions
    assert member.messages == [{"role": "user", "content": "The app does not start."}]
    assert reply["metrics"]["model_requests"] == 2


async def test_support_s_specialist_knows_the_conversation(kitchen: Kitchen) -> None:
    kitchen.play(at_the_desk)
    await kitchen.ask("support", "The app does not start.")
    await kitchen.ask("support", "It still does not.")
    assert [one["content"] for one in kitchen.asked[-1].messages] == [
        *("The app does not start.", "Start it again.", "It still does not.")
    ]


# panel


async def test_panel_asks_both_members_at_the_same_time_and_weighs_what_they_say(kitchen: Kitchen) -> None:
    both_asked = asyncio.Event()

    def answer(asked: Asked) -> Answer:
        match told(asked):
            case "leader":
                return Says("Do it, with care.")
            case who:
                if len(kitchen.asked) == 2:
                    both_asked.set()
                return Waits(both_asked, Says(f"The {who}'s view."))

    kitchen.play(answer)
    reply = await kitchen.ask("panel", "Shall we rewrite it?")
    assert reply["content"] == "Do it, with care."
    assert reply["member_responses"] == [
        {"member_id": "optimist", "content": "The optimist's view.", "status": "COMPLETED"},
        {"member_id": "sceptic", "content": "The sceptic's view.", "status": "COMPLETED"},
    ]
    leader = kitchen.asked[-1]
    assert told(leader) == "leader"
    for expected in ("Shall we rewrite it?", "The optimist's view.", "The sceptic's view."):
        assert expected in leader.prompt


async def test_panel_goes_on_without_a_member_that_fails(kitchen: Kitchen) -> None:
    def answer(asked: Asked) -> Answer:
        return Fails(400) if told(asked) == "sceptic" else Says(f"said by {told(asked)}")

    kitchen.play(answer)
    reply = await kitchen.ask("panel", "Shall we rewrite it?")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "said by leader")
    assert {one["member_id"]: one["status"] for one in reply["member_responses"]} == {
        "optimist": "COMPLETED",
        "sceptic": "ERROR",
    }
    assert "This member has failed" in kitchen.asked[-1].prompt


# invoice


def an_invoice(total: str) -> Json:
    lines = [{"text": "Tea", "amount": "12.50"}, {"text": "Post", "amount": "3.90"}]
    return {"number": "R-7", "currency": "EUR", "lines": lines, "total": total}


async def test_invoice_is_json_and_what_does_not_add_up_is_asked_for_again(kitchen: Kitchen) -> None:
    def answer(asked: Asked) -> Answer:
        (tool,) = asked.tools
        return Calls((tool, an_invoice("17.00" if len(kitchen.asked) == 1 else "16.40")))

    kitchen.play(answer)
    reply = await kitchen.ask("invoice", "R-7: tea 12.50, post 3.90, together EUR 16.40")
    assert (reply["status"], reply["content"]) == ("COMPLETED", an_invoice("16.40"))
    assert len(kitchen.asked) == 2
    assert "the lines make 16.40, and the total says 17.00" in kitchen.asked[1].messages[-1]["content"]


async def test_invoice_that_never_validates_is_no_invoice(kitchen: Kitchen) -> None:
    kitchen.play(lambda asked: Calls((asked.tools[0], an_invoice("17.00") | {"currency": "Euro"})))
    reply = await kitchen.ask("invoice", "R-7: tea 12.50, post 3.90, together EUR 16.40")
    assert (reply["status"], reply["content"], reply["error"]["code"]) == ("ERROR", None, "invalid_output")
    assert len(kitchen.asked) == 3


# shop


async def test_shop_keeps_cart_and_address_and_sums_up_what_is_long_ago(kitchen: Kitchen) -> None:
    def answer(asked: Asked) -> Answer:
        if told(asked) == "summary":
            return Says(f"SUMMARY {asked.prompt.count('User:')}")
        if asked.messages[-1]["role"] == "tool":
            return Says("Noted.")
        match asked.prompt:
            case "Two Assam, please.":
                return Calls(("add_to_cart", {"item": "Assam", "count": 2}))
            case "One more.":
                return Calls(("add_to_cart", {"item": "Assam"}))
            case "I live in Mill Lane 3.":
                return Calls(("update_session_state", {"changes": {"address": "Mill Lane 3"}}))
            case _:
                return Says("Three Assam go to Mill Lane 3.")

    async def asked_in_turn(number: int, text: str) -> Asked:
        """The first request of a turn, which is sent when what was said before is summed up."""
        kitchen.asked.clear()
        reply = await kitchen.ask("shop", text)
        assert (reply["status"], reply["turn"]) == ("COMPLETED", number)
        await eventually(written(number))
        return next(one for one in kitchen.asked if told(one) != "summary")

    def written(times: int) -> Callable[[], bool]:
        events = kitchen.stage.worker.events
        return lambda: sum(one["session_id"] == kitchen.session for one in events("summary_written")) == times

    kitchen.play(answer)
    first = await asked_in_turn(1, "Two Assam, please.")
    assert '{"cart":{}}' in first.instructions
    assert (await kitchen.stored())["state"] == {"cart": {"Assam": 2}}

    second = await asked_in_turn(2, "One more.")
    assert '{"cart":{"Assam":2}}' in second.instructions
    assert (await kitchen.stored())["state"] == {"cart": {"Assam": 3}}

    await asked_in_turn(3, "I live in Mill Lane 3.")
    stored = await kitchen.stored()
    assert stored["state"] == {"cart": {"Assam": 3}, "address": "Mill Lane 3"}
    assert stored["summary"]["summary"].startswith("SUMMARY")

    fourth = await asked_in_turn(4, "What do I get?")
    assert "Mill Lane 3" in fourth.instructions
    assert stored["summary"]["summary"] in fourth.instructions
    assert [one["content"] for one in fourth.messages if one["role"] == "user"] == [
        *("One more.", "I live in Mill Lane 3.", "What do I get?")
    ]


# report


async def test_report_takes_its_steps_in_order_and_checks_the_last_text(kitchen: Kitchen) -> None:
    def answer(asked: Asked) -> Answer:
        match told(asked):
            case "researcher":
                return Says("NOTES: tea is old")
            case "author":
                return Says("A first version.")
            case "editor":
                return Says("A better version.")
            case _:
                return writers_leader(asked)

    def writers_leader(asked: Asked) -> Answer:
        returned = [one["content"] for one in asked.messages if one["role"] == "tool"]
        member = ("author", "editor")[len(returned)] if len(returned) < 2 else None
        return Calls(("delegate_task", {"member_id": member, "task": "do it"})) if member else Says(returned[-1])

    kitchen.play(answer)
    reply = await kitchen.ask("report", "Tea", kind="workflow_id")
    assert reply["status"] == "COMPLETED", reply["error"]
    assert reply["content"] == {"report": "A better version.", "words": 3, "too_long": False}
    assert [one["member_id"] for one in reply["member_responses"]] == ["research", "write", "check"]
    assert [told(one) for one in kitchen.asked] == ["researcher", "leader", "author", "leader", "editor", "leader"]
    assert kitchen.asked[0].prompt == "Tea"
    assert kitchen.asked[1].prompt.startswith("Tea\n\n")
    assert "NOTES: tea is old" in kitchen.asked[1].prompt
    run = next(one for one in await kitchen.stage.runs(kitchen.session) if one["run_id"] == reply["run_id"])
    assert [(one["step_name"], one["content"]) for one in run["step_results"]] == [
        ("research", "NOTES: tea is old"),
        ("write", "A better version."),
        ("check", reply["content"]),
    ]


# steady


async def test_steady_asks_the_second_model_where_the_first_one_fails(kitchen: Kitchen) -> None:
    kitchen.play(lambda asked: Fails(503) if asked.model == FIRST else Says("from the second"))
    reply = await kitchen.ask("steady", "Hello")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "from the second")
    assert [one.model for one in kitchen.asked] == [FIRST, SECOND]


async def test_steady_asks_both_again_where_both_fail(kitchen: Kitchen) -> None:
    kitchen.play(lambda _: SOON if len(kitchen.asked) <= 4 else Says("at last"))
    reply = await kitchen.ask("steady", "Hello")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "at last")
    assert [one.model for one in kitchen.asked] == [FIRST, SECOND, FIRST, SECOND, FIRST]


async def test_steady_gives_up_after_four_more_tries(kitchen: Kitchen) -> None:
    kitchen.play(lambda _: SOON)
    reply = await kitchen.ask("steady", "Hello")
    assert (reply["status"], reply["error"]["code"], reply["error"]["retryable"]) == ("ERROR", "model_error", True)
    assert Counter(one.model for one in kitchen.asked) == {FIRST: 5, SECOND: 5}


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (Says("dear", input_tokens=60_000), "total_tokens_limit of 50000"),
        (Says("dear", output_tokens=30_000), "cost_limit"),
        (Calls(("exchange_rates", {"currency": "EUR"})), "request_limit of 5"),
    ],
    ids=["tokens", "cost", "requests"],
)
async def test_steady_ends_where_it_uses_too_much(kitchen: Kitchen, answer: Answer, limit: str) -> None:
    kitchen.rates.answer = b'{"rates": {"USD": 1.1}}'
    kitchen.play(lambda _: answer)
    reply = await kitchen.ask("steady", "Hello")
    assert (reply["status"], reply["error"]["code"]) == ("ERROR", "usage_limit_exceeded")
    assert limit in reply["error"]["message"]


async def test_steady_has_four_requests_to_the_first_model_at_once(kitchen: Kitchen) -> None:
    at_once, opened = [0], asyncio.Event()

    def answer(asked: Asked) -> Answer:
        at_once.append(kitchen.models.server.under_way)
        assert asked.body["max_output_tokens"] == 4_000
        return Waits(opened, Says("done"))

    kitchen.play(answer)
    sessions = [f"{kitchen.session}-{number}" for number in range(8)]
    run_ids = [await kitchen.send("steady", "Hello", session=session) for session in sessions]
    await eventually(lambda: max(at_once) == 4)
    # A turn that has begun is recorded: the other four wait for the model, and not for their turns.
    await eventually(lambda: started(kitchen.stage, run_ids))
    opened.set()
    await kitchen.stage.broker.replies_of(run_ids)
    assert max(at_once) == 4
    assert len(kitchen.asked) == 8


async def started(stage: Stage, run_ids: list[str]) -> bool:
    query = "select count(*) from ai.turn_attempts where run_id = any($1)"
    return bool(await stage.database.fetchval(query, run_ids) == len(run_ids))


async def test_steady_tells_the_model_of_a_tool_that_takes_too_long(kitchen: Kitchen) -> None:
    def answer(asked: Asked) -> Answer:
        last = asked.messages[-1]
        if last["role"] == "tool" and "USD" in last["content"]:
            return Says("A euro is 1.1 dollars.")
        kitchen.rates.answer = None if len(kitchen.asked) == 1 else b'{"rates": {"USD": 1.1}}'
        return Calls(("exchange_rates", {"currency": "EUR"}))

    kitchen.play(answer)
    kitchen.rates.asked.clear()
    reply = await kitchen.ask("steady", "What is a euro?")
    assert (reply["status"], reply["content"]) == ("COMPLETED", "A euro is 1.1 dollars.")
    assert kitchen.rates.asked == ["GET /latest?base=EUR HTTP/1.1"] * 2
    assert "Timed out after 2" in kitchen.asked[1].messages[-1]["content"]
