"""Summaries of sessions by Agno's own manager, written beside the turns as those of our teams are.

Agno writes one in each run, of the whole session each time. Here the manager is given the summary so far and the runs
after it, and no turn waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

from agno.exceptions import ContextWindowExceededError, ModelProviderError
from agno.metrics import RunMetrics
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.session import AgentSession

from worker.agno.prices import tell_usage
from worker.errors import InvalidOutput, SummaryRejected
from worker.executors.batches import (
    LONGEST_SIDE_CHARACTERS,
    LONGEST_SUMMARY_CHARACTERS,
    SHORT_SIDE_CHARACTERS,
    cut,
    number_in_batch,
)
from worker.executors.json_values import clean
from worker.executors.turn import PastRun, Usage, WrittenSummary

_REJECTING_STATUS: Final = frozenset({400, 413, 422})


@dataclass(frozen=True)
class AgnoSummarizer:
    """A session summary manager of Agno's, as something that keeps summaries up to date."""

    manager: Any

    async def summarize(self, previous: str | None, runs: Sequence[PastRun]) -> WrittenSummary:
        """Return a summary of what `previous` summarizes and of the first of the runs after it: a batch, or all.

        A single run that the provider won't take is tried again in short. Raises SummaryRejected.
        """
        batch = [_cut(run, LONGEST_SIDE_CHARACTERS) for run in runs]
        batch = batch[: number_in_batch(len(run.input) + len(run.content_text) for run in batch)]
        try:
            return await self._written(previous, batch)
        except SummaryRejected:
            shorter = [_cut(run, SHORT_SIDE_CHARACTERS) for run in batch]
            if len(batch) > 1 or shorter == batch:
                raise
            return await self._written(previous, shorter)

    async def _written(self, previous: str | None, runs: Sequence[PastRun]) -> WrittenSummary:
        manager, metrics = copy(self.manager), RunMetrics()
        earlier = [_so_far(previous)] if previous else []
        session = AgentSession(session_id="summary", runs=[*earlier, *map(_told, runs)])
        try:
            written = await manager.acreate_session_summary(session=session, run_metrics=metrics)
        except ModelProviderError as error:
            known = ModelProviderError.classify(error)
            if isinstance(known, ContextWindowExceededError) or known.status_code in _REJECTING_STATUS:
                raise SummaryRejected(len(runs), type(known).__name__) from error
            raise
        tell_usage(manager.model, metrics)
        text = clean((written.summary if written is not None else "").strip()[:LONGEST_SUMMARY_CHARACTERS])
        if not text:
            raise InvalidOutput("the model wrote no summary")
        usage = Usage(metrics.input_tokens, metrics.output_tokens, model_requests=1)
        topics = tuple(str(clean(topic)) for topic in written.topics or ())
        return WrittenSummary(str(text), len(runs), usage, topics)


def _cut(run: PastRun, longest_side: int) -> PastRun:
    return replace(run, input=cut(run.input, longest_side), content=cut(run.content_text, longest_side))


def _so_far(summary: str) -> Any:
    return _run("The conversation so far, in summary?", cut(summary, LONGEST_SUMMARY_CHARACTERS))


def _told(run: PastRun) -> Any:
    return _run(run.input, run.content_text)


def _run(asked: str, answered: str) -> Any:
    messages = [Message(role="user", content=asked), Message(role="assistant", content=answered)]
    return RunOutput(messages=messages, status=RunStatus.completed)
