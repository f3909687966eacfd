"""What models used is told once for each call that is made: whoever makes it, and not again from a journal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from agno.session.summary import SessionSummaryManager
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from tests.unit.agno_objects import Scripted
from tests.unit.books import Book
from tests.unit.models import member, responses, says, tasks, text
from tests.unit.test_agno_journal import World as AgnoWorld
from tests.unit.test_summaries import run_of, writer_of
from worker.agno.summaries import AgnoSummarizer
from worker.executors.model_calls import ModelCall, model_calls_told, tell_model_call
from worker.team.prices import tell_response
from worker.team.team import Team


@pytest.fixture
def calls() -> Iterator[list[ModelCall]]:
    """What is told within the test."""
    told: list[ModelCall] = []
    with model_calls_told(told.append):
        yield told


def a_team_of_two(*, journal: bool) -> Team:
    leader = responses(tasks(("one", "look"), ("two", "look")), text("done", tokens=(20, 4)))
    return Team("t1", leader.model, members=[member("one", says("1")), member("two", says("2"))], journal=journal)


@pytest.mark.parametrize("journal", [True, False])
async def test_each_request_of_leader_and_members_is_told(calls: list[ModelCall], *, journal: bool) -> None:
    await Book().attempt(a_team_of_two(journal=journal))
    assert Counter(calls) == {ModelCall("told", 10, 2): 3, ModelCall("told", 20, 4): 1}


@pytest.mark.parametrize("dies_at", range(2, 5))
async def test_over_all_attempts_each_is_told_as_often_as_it_is_made(calls: list[ModelCall], dies_at: int) -> None:
    leader = responses(tasks(("one", "look")), text("done"))
    asked = responses(text("1"))
    team = Team("t1", leader.model, members=[member("one", asked.model)])
    await Book(dies_at=dies_at).until_done(team)
    assert len(calls) == len(leader.asked) + len(asked.asked)


async def test_what_a_later_attempt_is_given_is_not_told(calls: list[ModelCall]) -> None:
    book = Book()
    await book.attempt(a_team_of_two(journal=True))
    calls.clear()
    await book.attempt(a_team_of_two(journal=True))
    assert calls == []
    assert book.turn is not None
    assert book.turn.steps.journal.resumed_steps == 4


@pytest.mark.parametrize("tries", [1, 3])
async def test_what_agno_s_models_use_is_told_as_well(calls: list[ModelCall], tries: int) -> None:
    world, book = AgnoWorld(), Book(dies_at=3 if tries > 1 else None)
    await book.until_done(world.executor())
    made = sum(count for name, count in world.calls.items() if name != "pay")
    assert calls == [ModelCall("scripted", 10, 2)] * made
    calls.clear()
    await book.attempt(world.executor())
    assert calls == []


async def test_the_writing_of_a_summary_is_told(calls: list[ModelCall]) -> None:
    await writer_of(says("short")).summarize(None, [run_of()])
    assert calls == [ModelCall("told", 10, 2)]


async def test_so_is_that_of_agno_s_own_manager(calls: list[ModelCall]) -> None:
    manager = SessionSummaryManager(model=Scripted('{"summary": "short", "topics": []}', tokens=(30, 3)))
    await AgnoSummarizer(manager).summarize(None, [run_of()])
    assert calls == [ModelCall("scripted", 30, 3)]


def test_a_known_model_has_a_price_and_cached_tokens_theirs(calls: list[ModelCall]) -> None:
    for cached in (0, 900_000):
        usage = RequestUsage(input_tokens=1_000_000, output_tokens=100_000, cache_read_tokens=cached)
        tell_response(ModelResponse([TextPart("hi")], usage=usage, model_name="gpt-5", provider_name="openai"))
    full, with_cache = (call.dollars for call in calls)
    assert full == pytest.approx(1.25 + 1.0)
    assert full is not None
    assert with_cache is not None
    assert with_cache < full


@pytest.mark.parametrize(
    "response",
    [
        ModelResponse([TextPart("hi")], model_name="nobody's own", provider_name="nobody"),
        ModelResponse([TextPart("hi")], model_name=None),
        ModelResponse([TextPart("hi")], model_name="gpt-5", usage=RequestUsage(unmeasured_requests=1)),
        ModelResponse(
            [TextPart("hi")], model_name="gpt-5", provider_name="openai", provider_details={"service_tier": []}
        ),
    ],
    ids=["no such model", "no name", "no usage", "odd details"],
)
def test_what_has_no_price_costs_nothing_that_is_known(calls: list[ModelCall], response: ModelResponse) -> None:
    tell_response(response)
    assert [call.model for call in calls] == [response.model_name]
    assert [call.dollars or 0 for call in calls] == [0]


def test_what_is_no_response_is_not_told(calls: list[ModelCall]) -> None:
    nothings: list[object] = [None, {"usage": 5}, [], "text"]
    for nothing in nothings:
        tell_response(nothing)
    assert calls == []


async def test_nobody_need_listen_and_turns_side_by_side_are_told_apart() -> None:
    tell_model_call(ModelCall("told", 1, 1))
    told: dict[str, list[ModelCall]] = {"one": [], "two": []}

    async def turn(name: str, tokens: int) -> None:
        with model_calls_told(told[name].append):
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.to_thread(tell_model_call, ModelCall(name, tokens, 0)), asyncio.sleep(0))

    await asyncio.gather(turn("one", 1), turn("two", 2))
    assert told == {"one": [ModelCall("one", 1, 0)], "two": [ModelCall("two", 2, 0)]}
