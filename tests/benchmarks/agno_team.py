"""One Agno Team with a model that answers at once: as its users run it, and as an executor of teamturn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from agno.db.base import AsyncBaseDb
from agno.models.base import Model
from agno.models.message import Message
from agno.models.response import ModelResponse
from agno.team import Team

from teamturn import Turn, executor

HISTORY_RUNS: Final = 3
_MODEL_SECONDS: Final = float(os.environ.get("BENCH_MODEL_SECONDS", "0"))
_ANSWER: Final = "The capital of France is Paris."


class InstantModel(Model):
    """Answers at once, or after BENCH_MODEL_SECONDS, and always the same."""

    def invoke(self, *_: Any, **__: Any) -> ModelResponse:
        return ModelResponse(role="assistant", content=_ANSWER)

    async def ainvoke(self, *_: Any, **__: Any) -> ModelResponse:
        if _MODEL_SECONDS:
            await asyncio.sleep(_MODEL_SECONDS)
        return self.invoke()

    def invoke_stream(self, *_: Any, **__: Any) -> Iterator[ModelResponse]:
        yield self.invoke()

    async def ainvoke_stream(self, *_: Any, **__: Any) -> AsyncIterator[ModelResponse]:
        yield self.invoke()

    def _parse_provider_response(self, response: Any, **_: Any) -> ModelResponse:
        return ModelResponse(content=response)

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        return ModelResponse(content=response)


def team_of(db: AsyncBaseDb | None) -> Team:
    """The team; with a database it keeps its sessions there, and shows its model the last runs."""
    return Team(
        id="capital",
        name="capital",
        members=[],
        model=InstantModel(id="instant"),
        instructions="Answer briefly.",
        db=db,
        add_history_to_context=db is not None,
        num_history_runs=HISTORY_RUNS,
        telemetry=False,  # it would call Agno's servers
    )


_team = team_of(None)


@executor("capital", history_runs=HISTORY_RUNS)
async def capital(turn: Turn) -> str:
    """Have the team answer, with the history and storage that teamturn has."""
    said = [
        Message(role=role, content=content)
        for run in turn.history
        for role, content in (("user", run.input), ("assistant", run.content_text))
    ]
    question = Message(role="user", content=turn.input)
    output = await _team.arun([*said, question], session_id=turn.session_id, user_id=turn.user_id)
    return str(output.content)
