"""The summary of a session: written by a model after a turn, and shown instead of the runs before the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from worker.errors import InvalidOutput, SummaryRejected
from worker.executors.arguments import TEXT, check, check_one, of_type
from worker.executors.batches import (
    LONGEST_SIDE_CHARACTERS,
    LONGEST_SUMMARY_CHARACTERS,
    SHORT_SIDE_CHARACTERS,
    cut,
    number_in_batch,
)
from worker.executors.json_values import clean
from worker.executors.turn import PastRun, Usage, WrittenSummary
from worker.team.agent_run import DEFAULT_MODEL_RETRIES, without_own_retries
from worker.team.arguments import KINDS, model_of
from worker.team.failures import is_rejection
from worker.team.hooks import TurnHooks

_INSTRUCTIONS: Final = (
    "Write a summary of the conversation below, for somebody who has to go on with it: who wants what, what was found "
    "out, decided and promised, and names and numbers as they were said. Where there is an earlier summary, write a "
    "new one that holds both. Make nothing up. Answer with the summary only, in at most 200 words."
)


@dataclass(frozen=True)
class SessionSummary:
    """How the summary of a session is written.

    It takes up the last 40 completed runs that it lacks: older ones, of a session that it is switched on for late, are
    neither in it nor shown. After a turn it is gone on with by three calls at most, of up to 20 runs each; what it
    lacks then is made up for after the next turn.

    Args:
        model: The model that writes it, by name or as an object; the team's by default.
        instructions: What it is told to do.
        model_settings: pydantic-ai's ModelSettings of it.

    """

    model: Model | str | None = None
    instructions: str = _INSTRUCTIONS
    model_settings: ModelSettings | None = None

    @classmethod
    def of(cls, where: str, given: SessionSummary | bool, model: Model) -> SummaryWriter | None:  # noqa: FBT001 - True stands for the defaults
        """Return what writes summaries as asked for, by `model` if no other is; None where none are asked for.

        Raises ValueError, beginning with `where`, for what can't be.
        """
        check_one(where, "session_summary", _ASKED, given)
        if not given:
            return None
        asked = given if isinstance(given, SessionSummary) else cls()
        where = f"{where}: session_summary"
        check(where, _KINDS, vars(asked))
        writer = model if asked.model is None else model_of(where, "model", asked.model)
        agent = Agent(writer, name="summary", instructions=asked.instructions, model_settings=asked.model_settings)
        return SummaryWriter(agent, writer)


_ASKED: Final = of_type("True, False or a SessionSummary", bool, SessionSummary)
_KINDS: Final = {"instructions": TEXT, "model_settings": KINDS["model_settings"]}


@dataclass(frozen=True)
class SummaryWriter:
    """A model that writes summaries."""

    agent: Agent[object, str]
    model: Model

    async def summarize(self, previous: str | None, runs: Sequence[PastRun]) -> WrittenSummary:
        """Return a summary of what `previous` summarizes and of the first of the runs after it: a batch, or all.

        A single run that the provider won't take is tried again in short. Raises SummaryRejected.
        """
        said = [_said(run, LONGEST_SIDE_CHARACTERS) for run in runs]
        said = said[: number_in_batch(map(len, said))]
        try:
            return await self._written(previous, said)
        except SummaryRejected:
            shorter = [_said(run, SHORT_SIDE_CHARACTERS) for run in runs[:1]]
            if len(said) > 1 or shorter == said:
                raise
            return await self._written(previous, shorter)

    async def _written(self, previous: str | None, said: Sequence[str]) -> WrittenSummary:
        earlier = [f"The summary so far:\n{cut(previous, LONGEST_SUMMARY_CHARACTERS)}"] if previous else []
        try:
            result = await self.agent.run(
                "\n\n".join([*earlier, *said]),
                infer_name=False,
                model_settings=without_own_retries(self.model),
                capabilities=[TurnHooks(DEFAULT_MODEL_RETRIES)],
            )
        except Exception as error:
            if is_rejection(error):
                raise SummaryRejected(len(said), type(error).__name__) from error
            raise
        used = result.usage
        text = clean(result.output.strip()[:LONGEST_SUMMARY_CHARACTERS])
        if not text:
            raise InvalidOutput("the model wrote no summary")
        usage = Usage(used.input_tokens, used.output_tokens, used.requests, used.tool_calls)
        return WrittenSummary(str(text), len(said), usage)


def _said(run: PastRun, longest_side: int) -> str:
    return f"User: {cut(run.input, longest_side)}\nAssistant: {cut(run.content_text, longest_side)}"
