"""The summary of a session: written by a model after a turn, and shown instead of the runs before the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from worker.errors import InvalidOutput
from worker.executors.arguments import TEXT, check, check_one, of_type
from worker.executors.json_values import clean
from worker.executors.turn import PastRun, Usage
from worker.team.agent_run import DEFAULT_MODEL_RETRIES
from worker.team.arguments import KINDS, model_of
from worker.team.hooks import TurnHooks

_INSTRUCTIONS: Final = (
    "Write a summary of the conversation below, for somebody who has to go on with it: who wants what, what was found "
    "out, decided and promised, and names and numbers as they were said. Where there is an earlier summary, write a "
    "new one that holds both. Make nothing up. Answer with the summary only, in at most 200 words."
)
_LONGEST_SUMMARY_CHARACTERS: Final = 8_000
_LONGEST_SIDE_CHARACTERS: Final = 8_000
"""Of what one side said in a run: a summary needs no file that was pasted into the conversation."""


@dataclass(frozen=True)
class SessionSummary:
    """How the summary of a session is written.

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
        return SummaryWriter(
            Agent(writer, name="summary", instructions=asked.instructions, model_settings=asked.model_settings)
        )


_ASKED: Final = of_type("True, False or a SessionSummary", bool, SessionSummary)
_KINDS: Final = {"instructions": TEXT, "model_settings": KINDS["model_settings"]}


@dataclass(frozen=True)
class SummaryWriter:
    """A model that writes summaries."""

    agent: Agent[object, str]

    async def summarize(self, previous: str | None, runs: Sequence[PastRun]) -> tuple[str, Usage]:
        """Return the summary of what `previous` summarizes and the runs after it, and what it cost."""
        result = await self.agent.run(
            _conversation(previous, runs), infer_name=False, capabilities=[TurnHooks(DEFAULT_MODEL_RETRIES)]
        )
        used = result.usage
        text = clean(result.output.strip()[:_LONGEST_SUMMARY_CHARACTERS])
        if not text:
            raise InvalidOutput("the model wrote no summary")
        usage = Usage(used.input_tokens, used.output_tokens, used.requests, used.tool_calls)
        return str(text), usage


def _conversation(previous: str | None, runs: Sequence[PastRun]) -> str:
    earlier = [f"The summary so far:\n{previous}"] if previous else []
    said = [f"User: {_cut(run.input)}\nAssistant: {_cut(run.content_text)}" for run in runs]
    return "\n\n".join([*earlier, *said])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SIDE_CHARACTERS else f"{text[:_LONGEST_SIDE_CHARACTERS]} …"
