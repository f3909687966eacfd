"""What is told of a watched turn when its model fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tests.unit.examples import a_turn
from worker.errors import ModelFailed
from worker.executors.events import Events
from worker.executors.turn import Turn
from worker.team import hooks
from worker.team.team import Team


class Answers:
    """A model whose first answer breaks off, before or after its first piece, and whose second one does not."""

    def __init__(self, *before_it_breaks: str) -> None:
        self.asked = 0
        self._before = before_it_breaks
        self.model = FunctionModel(stream_function=self._stream, model_name="told")

    async def _stream(self, _: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        self.asked += 1
        if self.asked == 1:
            for piece in self._before:
                yield piece
            raise ModelHTTPError(503, "told")
        yield "whole"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_FIRST_WAIT_SECONDS", 0.01)


def _watched(told: list[dict[str, Any]]) -> Turn:
    turn = a_turn()
    turn.events = Events(told.append, run_id=turn.run_id)
    return turn


def _texts(told: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in told if event["type"] == "content_delta"]


async def test_an_answer_that_has_not_begun_is_asked_for_again() -> None:
    answers, told = Answers(), list[dict[str, Any]]()
    assert await Team("t1", answers.model).run(_watched(told)) == "whole"
    assert (answers.asked, _texts(told)) == (2, ["whole"])


async def test_an_answer_that_breaks_off_is_not_written_twice() -> None:
    answers, told = Answers("half "), list[dict[str, Any]]()
    with pytest.raises(ModelFailed) as failed:
        await Team("t1", answers.model).run(_watched(told))
    assert failed.value.is_retryable
    assert (answers.asked, _texts(told)) == (1, ["half "])
