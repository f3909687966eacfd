"""What went wrong with cancelled, interrupted and refused runs. Pure.

What Postgres has stored of a cancellation, and when, is what a run is held against: from then on it goes on no longer
than a moment, and a run that was asked for later is never started. A worker that is frozen, slow or cut off from
Postgres hears of it later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.case import Case, Check, Violation
from tests.chaos.evidence import Evidence, Upset

_GRACE_SECONDS: Final = 3.0
"""From when a cancellation is stored to when its run has ended, on a machine that has much to do."""
_BEFORE_SECONDS: Final = 1.0
"""What is stored so long before a run is asked for is found by its claim."""
_DEAF: Final = (Upset.FREEZE, Upset.SLOW, Upset.POSTGRES)


def cancels_ignored(case: Case) -> Iterator[Violation]:
    """Runs that their users have cancelled, and that went on."""
    cancelled = _cancelled(case.evidence)
    for run_id, at in case.evidence.cancelled.items():
        if run_id in cancelled:
            yield from _went_on(case, run_id, at)


def interrupts_ignored(case: Case) -> Iterator[Violation]:
    """Runs that a later request of the session has interrupted, and that went on."""
    cancelled = _cancelled(case.evidence)
    for run_id, at in case.evidence.cancelled.items():
        if run_id not in cancelled:
            yield from _went_on(case, run_id, at)


def _cancelled(evidence: Evidence) -> set[str]:
    return {one.run_id for one in evidence.cancels if one.by_its_user}


def _went_on(case: Case, run_id: str, at: float) -> Iterator[Violation]:
    if run_id not in case.replies or run_id not in case.session_of:
        return  # another check's
    reply = case.replies[run_id]
    if reply["status"] != "CANCELLED":
        if case.asked(run_id).at > at + _BEFORE_SECONDS:
            yield case.of_run(run_id, f"it was cancelled before it was asked for, and is {reply['status']}")
            return
        # Whole seconds, rounded down.
        seconds = reply["completed_at"] - at
        if seconds > _GRACE_SECONDS and not case.upset(at, reply["completed_at"] + 1, *_DEAF):
            yield case.of_run(run_id, f"it is {reply['status']}, {seconds:.1f} s after it was cancelled")
            return
    elif case.asked(run_id).at > at + _BEFORE_SECONDS and reply["turn"] is not None:
        yield case.of_run(run_id, "it was cancelled before it was asked for, and was started")
        return
    for call in case.calls.get(run_id, ()):
        late = call.began - at
        if late > _GRACE_SECONDS and not case.upset(at, call.began, *_DEAF):
            yield case.of_run(run_id, f"it called its step {call.step} {late:.1f} s after it was cancelled")
            return


def cancelled_unasked(case: Case) -> Iterator[Violation]:
    """Runs that are CANCELLED, and that neither their user nor a later request of the session has cancelled."""
    cancelled = _cancelled(case.evidence)
    for session_id, published in case.evidence.published.items():
        for position, run_id in enumerate(published):
            if run_id not in case.replies or case.replies[run_id]["status"] != "CANCELLED":
                continue
            if run_id not in cancelled and not _interrupting(case, published[position + 1 :]):
                yield Violation(session_id, run_id, "it is CANCELLED, and nobody asked for that")


def _interrupting(case: Case, run_ids: Sequence[str]) -> list[str]:
    return [run_id for run_id in run_ids if case.asked(run_id).on_busy == "interrupt"]


def unstarted_executed(case: Case) -> Iterator[Violation]:
    """Runs that were answered as never started, and of which a step or a run is stored."""
    stored = {run_id for run_ids in case.evidence.stored.values() for run_id in run_ids}
    recorded: dict[str, str] = {}
    for run_id, step in case.evidence.recorded:
        recorded.setdefault(run_id, step)
    for run_id in case.session_of:
        if not case.never_started(run_id):
            continue
        status = case.replies[run_id]["status"]
        if run_id in stored:
            yield case.of_run(run_id, f"it is {status} and never started, and it is among the session's runs")
        elif run_id in recorded:
            yield case.of_run(run_id, f"it is {status} and never started, and its step {recorded[run_id]} is recorded")


CONVERSATION_CHECKS: Final[Sequence[Check]] = (
    cancels_ignored,
    interrupts_ignored,
    cancelled_unasked,
    unstarted_executed,
)


def conversations(evidence: Evidence) -> dict[str, int]:
    """Return how many runs met with each thing that the checks here are about: a check of nothing finds nothing."""
    case = Case(evidence)
    counts = dict.fromkeys(
        (
            "cancelled_before",
            "cancelled_waiting",
            "cancelled_running",
            "cancelled_too_late",
            "interrupted_waiting",
            "interrupted_running",
            "interrupting",
            "refused_as_busy",
        ),
        0,
    )
    said = {one.run_id: one for one in evidence.cancels if one.by_its_user}
    for run_id in case.session_of:
        reply = case.replies.get(run_id)
        if reply is None:
            continue
        running = reply["turn"] is not None
        if reply["status"] == "CANCELLED" and run_id not in said:
            counts["interrupted_running" if running else "interrupted_waiting"] += 1
        elif reply["status"] == "CANCELLED":
            waiting = "cancelled_before" if said[run_id].before else "cancelled_waiting"
            counts["cancelled_running" if running else waiting] += 1
        elif run_id in said:
            counts["cancelled_too_late"] += 1
        elif reply["status"] == "REJECTED":
            counts["refused_as_busy"] += 1
        elif case.asked(run_id).on_busy == "interrupt":
            counts["interrupting"] += 1
    return counts
