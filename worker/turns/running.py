"""The runs that this worker is at, and how one of them is cancelled.

What is said of a run before its claim the claim tells; what is said later Postgres tells all workers, by NOTIFY. A run
is known here from before its claim on, so that nothing falls in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Final

import structlog

from schemas.requests import RunRequest
from worker.errors import RunCancelled, StoreUnavailable
from worker.executors.journal import Journal
from worker.executors.json_values import cleaned_json
from worker.sessions.statements import Cancellation
from worker.sessions.store import SessionStore

CHANNEL: Final = "teamturn_cancelled"
_RETRY_SECONDS: Final = 1.0

_log = structlog.get_logger()


class Stage(StrEnum):
    """How far a run has come that the worker is at."""

    WAITING = "waiting"
    """For a place among the turns, or for its claim."""
    EXECUTING = "executing"
    STORING = "storing"
    """Its turn was taken, and is not known to be stored yet."""


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A run that the worker is at, for people who ask: nothing of what was said, nor by whom."""

    run_id: str
    session_id: str
    target: str
    stage: Stage
    since: datetime
    """When it came to this stage, by the worker's clock."""
    attempt: int | None
    """None: none was begun here yet."""
    step: str | None
    """The step that was begun last."""


class Run:
    """One run that the worker is at."""

    def __init__(self, request: RunRequest) -> None:
        self._stage = Stage.WAITING
        self._since = time.time()
        self._attempt: int | None = None
        self._requests: tuple[RunRequest, ...] = (request,)
        self._journal: Journal | None = None
        self._said: set[Cancellation] = set()
        self._is_cancelled = False

    @property
    def run_ids(self) -> list[str]:
        """Return the runs that it answers, its own first."""
        return [request.run_id for request in self._requests]

    @property
    def cancelled(self) -> bool:
        """Whether its user does not want it any more."""
        return self._is_cancelled or not self._said.isdisjoint(self._cancelling())

    def cancel(self) -> None:
        """Say that its user does not want it any more."""
        self._is_cancelled = True

    def answers(self, joined: Sequence[RunRequest]) -> None:
        """Say which requests are part of its turn: whoever cancels one of them cancels it.

        What was said of one that is none any more is no matter: it may have been left out for just that.
        """
        self._requests = (self._requests[0], *joined)

    @contextmanager
    def attempted(self, journal: Journal) -> Iterator[None]:
        """Have an attempt, of which this is the journal, end when the run is cancelled during the block."""
        self._journal = journal
        self._attempt = journal.attempt
        self._come_to(Stage.EXECUTING)
        try:
            if self.cancelled:
                self._stop(journal)
            yield
        finally:
            self._journal = None
            self._come_to(Stage.STORING)

    def wait(self) -> None:
        """Say that it waits for its claim, again where it had one."""
        if self._stage is not Stage.WAITING:
            self._come_to(Stage.WAITING)

    @property
    def stage(self) -> Stage:
        """How far it has come."""
        return self._stage

    @property
    def begun(self) -> bool:
        """Whether an attempt was begun here."""
        return self._attempt is not None

    def seen(self) -> RunSeen:
        """Return it as it is now."""
        request = self._requests[0]
        return RunSeen(
            run_id=request.run_id,
            session_id=request.session_id,
            target=str(request.target),
            stage=self._stage,
            since=datetime.fromtimestamp(self._since, UTC),
            attempt=self._attempt,
            # A model can name a tool with a lone surrogate.
            step=None if self._journal is None else cleaned_json(self._journal.last_key),
        )

    def _come_to(self, stage: Stage) -> None:
        self._stage = stage
        self._since = time.time()

    def tell(self, said: frozenset[Cancellation]) -> None:
        """Cancel the run if that was said of it."""
        mine = said & self._cancelling()
        if self.cancelled or not mine:
            return
        self._said |= mine
        _log.debug("run_cancelled", run_id=self._requests[0].run_id, session_id=self._requests[0].session_id)
        if self._journal is not None:
            self._stop(self._journal)

    def _cancelling(self) -> set[Cancellation]:
        return {Cancellation(request.run_id, request.session_id, request.user_id) for request in self._requests}

    @staticmethod
    def _stop(journal: Journal) -> None:
        journal.stop(RunCancelled("the run was cancelled"))


class RunningRuns:
    """All of them."""

    def __init__(self, sessions: SessionStore) -> None:
        """To be made before the lanes are opened."""
        self._sessions = sessions
        self._runs: dict[Run, None] = {}
        """In the order in which the worker has come to them."""
        self._told = asyncio.Event()
        sessions.first_lane.listen(CHANNEL, self._told.set)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._runs)

    @property
    def executing(self) -> int:
        """How many of them are executed now."""
        return sum(run.stage is Stage.EXECUTING for run in self._runs)

    @property
    def begun(self) -> int:
        """Of how many an attempt was begun here."""
        return sum(run.begun for run in self._runs)

    def seen(self, most: int) -> list[RunSeen]:
        """Return the first of them as they are now, those that came first before the others."""
        return [run.seen() for run in islice(self._runs, most)]

    @contextmanager
    def entered(self, request: RunRequest) -> Iterator[Run]:
        """Be at a run for the block."""
        run = Run(request)
        self._runs[run] = None
        try:
            yield run
        finally:
            del self._runs[run]

    async def run(self) -> None:
        """Cancel what is said to be cancelled, until the task is."""
        while True:
            await self._told.wait()
            self._told.clear()
            if not self._runs:
                continue
            try:
                said = await self._sessions.cancelled([run_id for run in self._runs for run_id in run.run_ids])
            except StoreUnavailable:
                # The next connection tells as well; a statement that waited too long is asked again.
                await asyncio.sleep(_RETRY_SECONDS)
                self._told.set()
                continue
            for run in tuple(self._runs):
                run.tell(said)
