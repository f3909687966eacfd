"""The statements that go through lanes: how rows become arguments, and records our own values.

A row is what somebody submits, a result what they get; each kind of statement has a module.
"""

from worker.sessions.statements.attempts import (
    BEGIN_ATTEMPT,
    COUNT_ATTEMPT,
    RECORD_STEPS,
    UNCOUNT_ATTEMPT,
    BeginRow,
    StartRow,
    StepsRow,
)
from worker.sessions.statements.cancelling import CANCEL_RUN, CANCELLED_RUNS, Cancellation
from worker.sessions.statements.claiming import CLAIM, UNLOCK, ClaimRow
from worker.sessions.statements.coalescing import COALESCE, CoalesceRow
from worker.sessions.statements.committing import COMMIT, STORE_RECEIPT, CommitOutcome, CommitRow, ReceiptRow
from worker.sessions.statements.histories import (
    MOST_RUNS_MADE_UP_FOR,
    MOST_RUNS_SUMMARIZED,
    READ_WHOLE_RUNS,
    RUNS_TO_SUMMARIZE,
    STORE_SUMMARY,
    SummaryRow,
    Unsummarized,
    UnsummarizedRow,
    WholeRunsRow,
)
from worker.sessions.statements.pausing import CONTINUE_RUN, READ_PAUSES, ContinueRow, PausesRow

__all__ = [
    "BEGIN_ATTEMPT",
    "CANCELLED_RUNS",
    "CANCEL_RUN",
    "CLAIM",
    "COALESCE",
    "COMMIT",
    "CONTINUE_RUN",
    "COUNT_ATTEMPT",
    "MOST_RUNS_MADE_UP_FOR",
    "MOST_RUNS_SUMMARIZED",
    "READ_PAUSES",
    "READ_WHOLE_RUNS",
    "RECORD_STEPS",
    "RUNS_TO_SUMMARIZE",
    "STORE_RECEIPT",
    "STORE_SUMMARY",
    "UNCOUNT_ATTEMPT",
    "UNLOCK",
    "BeginRow",
    "Cancellation",
    "ClaimRow",
    "CoalesceRow",
    "CommitOutcome",
    "CommitRow",
    "ContinueRow",
    "PausesRow",
    "ReceiptRow",
    "StartRow",
    "StepsRow",
    "SummaryRow",
    "Unsummarized",
    "UnsummarizedRow",
    "WholeRunsRow",
]
