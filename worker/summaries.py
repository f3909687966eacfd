"""Summaries of sessions, written beside the turns: none waits for one.

A summary covers the runs up to a run_index, which is stored with it. What a summary lacks is found out after each
turn of its session: one that was lost, because the worker or the model failed, is so made up for after the next one.
Until then a turn is shown the runs that the summary does not cover. Two workers can write one at a time: the one that
covers more stays.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from structlog.contextvars import bound_contextvars, clear_contextvars

from worker.errors import StatementRefused, StoreUnavailable
from worker.executors.turn import Summarizer
from worker.sessions.store import SessionStore

_AT_ONCE: Final = 16
_LONGEST_SECONDS: Final = 300.0

_log = structlog.get_logger()


class Summaries:
    """Writes the summaries that are wanted, one at a time for each session."""

    def __init__(self, sessions: SessionStore) -> None:
        self._sessions = sessions
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._wanted: dict[str, Summarizer] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    def want(self, session_id: str, summarizer: Summarizer) -> None:
        """Have the session's summary brought up to date, when there is time for it."""
        self._wanted[session_id] = summarizer
        if session_id not in self._writing:
            task = asyncio.create_task(self._write_wanted(session_id), name=f"summary {session_id}")
            self._writing[session_id] = task

    async def drained(self) -> None:
        """Wait until none is wanted any more."""
        while self._writing:
            await asyncio.wait(self._writing.values())

    async def stop(self) -> None:
        """Give up what is not written yet; it is made up for after the session's next turn."""
        for task in self._writing.values():
            task.cancel()
        await self.drained()

    async def _write_wanted(self, session_id: str) -> None:
        try:
            clear_contextvars()  # of the turn that wanted it first
            with bound_contextvars(session_id=session_id):
                while (summarizer := self._wanted.pop(session_id, None)) is not None:
                    await self._write(session_id, summarizer)
        finally:
            # Nothing was awaited since none was wanted: no wish can have come in between.
            del self._writing[session_id]

    async def _write(self, session_id: str, summarizer: Summarizer) -> None:
        try:
            async with self._slots, asyncio.timeout(_LONGEST_SECONDS):
                while (lacking := await self._sessions.unsummarized(session_id)) and lacking.up_to is not None:
                    text, usage = await summarizer.summarize(lacking.previous, lacking.runs)
                    await self._sessions.store_summary(session_id, text, up_to=lacking.up_to, usage=usage)
                    _log.info("summary_written", runs=len(lacking.runs), input_tokens=usage.input_tokens)
        except (StoreUnavailable, StatementRefused, TimeoutError) as error:
            _log.warning("summary_not_written", reason=f"{type(error).__name__}: {error}", consequence=_LATER)
        except Exception as error:  # noqa: BLE001 - whatever a model or a provider's library raises costs this one only
            _log.warning("summary_not_written", reason=type(error).__name__, consequence=_LATER, exc_info=error)


_LATER: Final = "it is tried again after the session's next turn"
