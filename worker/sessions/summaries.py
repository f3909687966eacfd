"""Summaries of sessions, written beside the turns: none waits for one.

A summary covers the runs up to a run_index, which is stored with it. What a summary lacks is found out after each
turn of its session: one that was lost, because the worker or the model failed, is so made up for after the next one.
Until then a turn is shown the runs that the summary does not cover. Two workers can write one at a time: the one that
covers more stays.

What a turn sets off is bounded: a few summaries, each of a batch of the last runs that are lacking; the rest is the
next turn's. A batch that the provider rejects is halved, down to one run. A run that it won't have by itself is left
out, but only if it takes a later one: where it rejects everything, the fault is not the run's, and nothing is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from structlog.contextvars import bound_contextvars, clear_contextvars

from worker.errors import StatementRefused, StoreUnavailable, SummaryRejected
from worker.executors.model_calls import ModelCall, model_calls_told
from worker.executors.turn import Summarizer
from worker.sessions.statements import MOST_RUNS_SUMMARIZED
from worker.sessions.store import SessionStore

_AT_ONCE: Final = 16
_LONGEST_SECONDS: Final = 300.0
_MOST_WRITTEN: Final = 3
_MOST_REJECTED: Final = 8
"""Four find the run that is at fault in a batch of twenty, the fifth is of that run alone."""

ModelCalled = Callable[[ModelCall], None]

_log = structlog.get_logger()


class Summaries:
    """Writes the summaries that are wanted, one at a time for each session."""

    def __init__(self, sessions: SessionStore) -> None:
        self._sessions = sessions
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._wanted: dict[str, tuple[Summarizer, ModelCalled]] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    def want(self, session_id: str, summarizer: Summarizer, *, model_called: ModelCalled = lambda _: None) -> None:
        """Have the session's summary brought up to date, when there is time for it, and be told of the calls."""
        if session_id in self._writing:
            self._wanted[session_id] = summarizer, model_called
        else:
            self._start(session_id, summarizer, model_called)

    async def drained(self) -> None:
        """Wait until none is wanted any more."""
        while self._writing:
            await asyncio.wait(self._writing.values())

    async def stop(self) -> None:
        """Give up what is not written yet; it is made up for after the session's next turn."""
        self._wanted.clear()
        for task in self._writing.values():
            task.cancel()
        await self.drained()

    def _start(self, session_id: str, summarizer: Summarizer, model_called: ModelCalled) -> None:
        task = asyncio.create_task(self._write(session_id, summarizer, model_called), name=f"summary {session_id}")
        self._writing[session_id] = task
        # Not at the end of the task itself: one that is cancelled before it began has none.
        task.add_done_callback(lambda _: self._go_on(session_id))

    def _go_on(self, session_id: str) -> None:
        del self._writing[session_id]
        if (wanted := self._wanted.pop(session_id, None)) is not None:
            self._start(session_id, *wanted)

    async def _write(self, session_id: str, summarizer: Summarizer, model_called: ModelCalled) -> None:
        clear_contextvars()  # of the turn that wanted it
        with bound_contextvars(session_id=session_id), model_calls_told(model_called):
            try:
                async with self._slots, asyncio.timeout(_LONGEST_SECONDS):
                    await self._bring_up_to_date(session_id, summarizer)
            except (StoreUnavailable, StatementRefused, TimeoutError) as error:
                _log.warning("summary_not_written", reason=f"{type(error).__name__}: {error}", consequence=_LATER)
            except Exception as error:  # noqa: BLE001 - whatever a model or a provider's library raises costs this one only
                # Not its text, nor its traceback: a provider's may quote keys and users.
                _log.warning("summary_not_written", reason=type(error).__name__, consequence=_LATER)

    async def _bring_up_to_date(self, session_id: str, summarizer: Summarizer) -> None:
        written, rejected, most, left_out = 0, 0, MOST_RUNS_SUMMARIZED, None
        while written < _MOST_WRITTEN and rejected < _MOST_REJECTED:
            lacking = await self._sessions.unsummarized(session_id, after=left_out)
            if lacking is None or not lacking.runs:
                return
            try:
                summary = await summarizer.summarize(lacking.previous, lacking.runs[:most])
            except SummaryRejected as error:
                rejected += 1
                most = max(1, error.runs // 2)
                if error.runs == 1:
                    left_out = lacking.run_indexes[0]
                _log.warning(
                    "summary_rejected",
                    reason=str(error),
                    runs=error.runs,
                    first_run_id=lacking.runs[0].run_id,
                    consequence=_LEFT_OUT if error.runs == 1 else _HALVED,
                )
            else:
                up_to = lacking.run_indexes[summary.runs - 1]
                await self._sessions.store_summary(
                    session_id, summary.text, up_to=up_to, usage=summary.usage, topics=summary.topics
                )
                _log.debug("summary_written", runs=summary.runs, input_tokens=summary.usage.input_tokens)
                written += 1


_LATER: Final = "it is tried again after the session's next turn"
_HALVED: Final = "it is tried with half as many runs"
_LEFT_OUT: Final = "the summary goes without this run, if the model takes a later one"
