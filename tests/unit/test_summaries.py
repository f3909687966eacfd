"""Writing summaries: what the model is given, what it costs at most, and that it can be stopped."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelHTTPError,
    ModelQuotaExceededError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo

from tests.unit.models import Recorded, failing, prompts, responses, says, text
from worker.errors import SummaryRejected
from worker.executors.turn import PastRun
from worker.sessions.store import SessionStore
from worker.sessions.summaries import Summaries
from worker.team.failures import is_rejection
from worker.team.summary import SessionSummary, SummaryWriter


def writer_of(model: Model) -> SummaryWriter:
    writer = SessionSummary.of("team", SessionSummary(), model)
    assert writer is not None
    return writer


def run_of(*, asked: int = 5, answered: int = 5) -> PastRun:
    """A run whose input and answer have so many characters."""
    return PastRun(run_id="r", input="i" * asked, content="a" * answered, created_at=0)


def lengths(recorded: Recorded) -> list[int]:
    return [len(str(prompts(messages)[-1])) for messages in recorded.asked]


def taking(most: int) -> Recorded:
    """A model whose provider takes conversations of so many characters at most."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        if len(str(prompts(messages)[-1])) > most:
            raise ModelHTTPError(413, "told")
        return text("short")

    return Recorded(answer)


@pytest.mark.parametrize(
    ("asked", "answered", "runs"),
    [(5, 5, 20), (7_000, 7_000, 3), (1_000_000, 1_000_000, 2), (5, 1_000_000, 5)],
)
async def test_a_batch_is_whole_runs_of_so_many_characters_at_most(asked: int, answered: int, runs: int) -> None:
    recorded = responses(text("short"))
    written = await writer_of(recorded.model).summarize(None, [run_of(asked=asked, answered=answered)] * 20)
    assert written.runs == runs
    assert lengths(recorded)[0] <= 48_100


async def test_a_long_run_that_the_provider_rejects_is_tried_again_in_short() -> None:
    recorded = taking(5_000)
    written = await writer_of(recorded.model).summarize(None, [run_of(answered=9_000)])
    assert (written.text, written.runs) == ("short", 1)
    assert lengths(recorded)[1] < 3_000 < lengths(recorded)[0]


@pytest.mark.parametrize("given", [[run_of()], [run_of(answered=9_000)] * 2], ids=["short", "several"])
async def test_what_would_not_be_shorter_in_short_or_can_be_halved_is_not_tried_again(given: list[PastRun]) -> None:
    recorded = taking(0)
    with pytest.raises(SummaryRejected) as raised:
        await writer_of(recorded.model).summarize(None, given)
    assert raised.value.runs == len(given)
    assert len(recorded.asked) == 1


async def test_a_conversation_that_the_provider_filters_is_rejected() -> None:
    filtered = Recorded(lambda _, __: ModelResponse(parts=[], finish_reason="content_filter"))
    with pytest.raises(SummaryRejected):
        await writer_of(filtered.model).summarize(None, [run_of()])


async def test_what_is_no_rejection_is_raised_as_it_is() -> None:
    with pytest.raises(ModelHTTPError):
        await writer_of(failing(ModelHTTPError(401, "told"))).summarize(None, [run_of()])


def _group(*errors: Exception) -> FallbackExceptionGroup:
    return FallbackExceptionGroup("told", errors)


@pytest.mark.parametrize(
    ("error", "rejected"),
    [
        *((ModelHTTPError(status, "told"), True) for status in (400, 413, 422)),
        *((ModelHTTPError(status, "told"), False) for status in (401, 402, 403, 404, 408, 429, 500, 503)),
        (ModelHTTPError.for_category(ModelQuotaExceededError, status_code=400, model_name="told"), False),
        (ModelHTTPError.for_category(ModelAuthenticationError, status_code=400, model_name="told"), False),
        (_group(ModelHTTPError(400, "told"), ModelHTTPError(401, "told")), True),
        (_group(ModelHTTPError(400, "told"), ModelHTTPError(503, "told")), False),
        (_group(ModelHTTPError(401, "told")), False),
        (ModelAPIError("told", "no connection"), False),
        (ValueError("told"), False),
    ],
    ids=str,
)
def test_a_request_is_rejected_for_what_is_in_it_or_it_is_not(error: Exception, *, rejected: bool) -> None:
    assert is_rejection(error) is rejected


async def test_the_client_s_own_retries_are_off() -> None:
    recorded = responses(text("short"))
    await writer_of(recorded.model).summarize(None, [run_of()])
    assert recorded.infos[0].model_settings == {"max_retries": 0}


async def test_stopping_ends_though_what_was_wanted_has_not_begun() -> None:
    summaries = Summaries(cast("SessionStore", None))
    async with asyncio.timeout(5):
        for _ in range(2):
            summaries.want("s1", writer_of(says("never")))
        await summaries.stop()
