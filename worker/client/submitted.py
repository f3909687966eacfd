"""The runs whose reply is asked for later: all that are unanswered, and the newest of the others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from worker.client.pending import PendingRun

MOST_KEPT: Final = 1_000
MOST_KEPT_BYTES: Final = 64 * 2**20
"""Replies are kept up to these two, the newest. Those before them are stored by the workers, and can be had again."""


class SubmittedRuns:
    """What was submitted, by run_id."""

    def __init__(self) -> None:
        self._runs: dict[str, PendingRun] = {}
        self._answered: OrderedDict[str, PendingRun] = OrderedDict()
        self._answered_bytes = 0

    def find(self, run_id: str) -> PendingRun | None:
        """Return a run that was submitted, if it is still kept."""
        return self._runs.get(run_id)

    def add(self, pending: PendingRun) -> None:
        """Keep a run; of those with the same run_id, the last."""
        if (before := self.find(pending.request.run_id)) is not None:
            self.drop(before)
        self._runs[pending.request.run_id] = pending
        pending.reply.add_done_callback(lambda _: self._keep(pending))

    def drop(self, pending: PendingRun) -> None:
        """Keep it no longer."""
        run_id = pending.request.run_id
        if self._runs.get(run_id) is pending:
            del self._runs[run_id]
        if self._answered.get(run_id) is pending:
            del self._answered[run_id]
            self._answered_bytes -= pending.reply_bytes

    def _keep(self, pending: PendingRun) -> None:
        run_id = pending.request.run_id
        if self._runs.get(run_id) is not pending:
            return
        self._answered[run_id] = pending
        self._answered_bytes += pending.reply_bytes
        while len(self._answered) > MOST_KEPT or (self._answered_bytes > MOST_KEPT_BYTES and len(self._answered) > 1):
            self.drop(next(iter(self._answered.values())))
