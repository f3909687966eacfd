"""The verdict: what went wrong, from the evidence alone. Pure.

The first five are the contract's. The others are promised as well, and end in exit code 1 too: those of conversations
(cancel, interrupt, reject) are in `conversation`, those of the events of watched runs in `watched`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from tests.chaos.case import Case, Check, Violation
from tests.chaos.conversation import CONVERSATION_CHECKS
from tests.chaos.evidence import Evidence
from tests.chaos.script import UNREPEATABLE
from tests.chaos.watched import WATCHED_CHECKS

EXPECTED_ERRORS: Final = frozenset({"step_uncertain", "attempts_exhausted"})
"""What a turn may end with when its worker dies; anything else is a failure that nobody should see."""


def lost(case: Case) -> Iterator[Violation]:
    """Requests whose publish was confirmed, and which were not executed, stored and answered."""
    stored = {run_id for run_ids in case.evidence.stored.values() for run_id in run_ids}
    for run_id in case.session_of:
        if run_id not in case.bodies:
            yield case.of_run(run_id, "it has no reply")
        elif (reply := case.replies[run_id])["status"] == "REJECTED" and not _may_be_busy(case, run_id):
            yield case.of_run(run_id, f"it was refused: {reply['error']['code']}")
        if run_id not in case.evidence.receipts:
            yield case.of_run(run_id, "it has no receipt")
        if run_id not in stored and not case.never_started(run_id):
            yield case.of_run(run_id, "it is not among the session's runs")
    for run_id, number in case.evidence.unanswered.items():
        yield case.of_run(run_id, f"{number} of its publishes have no reply of their own")
    for queue, number in case.evidence.left.items():
        yield Violation("?", "?", f"{number} messages are left in {queue}")


def _may_be_busy(case: Case, run_id: str) -> bool:
    """Whether it was refused as it has asked for: `on_busy: reject`, and something was asked before it."""
    session = case.evidence.published[case.session_of[run_id]]
    code = case.replies[run_id]["error"]["code"]
    return code == "session_busy" and case.asked(run_id).on_busy == "reject" and session[0] != run_id


def duplicated(case: Case) -> Iterator[Violation]:
    """Runs that were stored twice, or turns that took effect twice."""
    for run_id, times in case.evidence.stored_times.items():
        if times > 1:
            yield case.of_run(run_id, f"it was stored {times} times")
    for session_id in case.evidence.published:
        yield from _repeated_turns(case, session_id)
        yield from _miscounted(case, session_id)


def _repeated_turns(case: Case, session_id: str) -> Iterator[Violation]:
    turns: dict[int, str] = {}
    for run_id, reply in case.in_order(session_id):
        if reply["turn"] is not None and turns.setdefault(reply["turn"], run_id) != run_id:
            yield Violation(session_id, run_id, f"it is turn {reply['turn']}, and so is {turns[reply['turn']]}")


def _miscounted(case: Case, session_id: str) -> Iterator[Violation]:
    # A cancelled turn keeps what it had: it may have counted itself, or not yet.
    completed = cancelled = 0
    for run_id, reply in case.in_order(session_id):
        if reply["status"] == "COMPLETED":
            completed += 1
            content = reply["content"]
            if isinstance(content, dict) and not completed <= content["count"] <= completed + cancelled:
                what = f"its turn was counted as number {content['count']}, and {completed} have completed"
                yield Violation(session_id, run_id, what)
        elif reply["status"] == "CANCELLED" and reply["turn"] is not None:
            cancelled += 1
    for name, count in case.evidence.states.get(session_id, {}).items():
        if not isinstance(count, int) or not completed <= count <= completed + cancelled:
            what = f"its state says {name} = {count}, and {completed} turns have completed"
            yield Violation(session_id, "?", what)


def reordered(case: Case) -> Iterator[Violation]:
    """Runs that were not taken, or not answered, in the order in which their session's were published."""
    answered = defaultdict(list)
    for run_id in case.bodies:
        answered[case.session_of.get(run_id, "?")].append(run_id)
    for session_id, published in case.evidence.published.items():
        yield from _otherwise(session_id, published, case.evidence.stored.get(session_id, ()), "stored")
        # A refusal for a busy session does not wait for its turn.
        waited = [run_id for run_id in answered[session_id] if case.replies[run_id]["status"] != "REJECTED"]
        yield from _otherwise(session_id, published, waited, "answered")
        turns = [(run_id, reply["turn"]) for run_id, reply in case.in_order(session_id) if reply["turn"] is not None]
        for (before, earlier), (run_id, later) in pairwise(turns):
            if later < earlier:
                what = f"it is turn {later}, and {before}, published before it, is turn {earlier}"
                yield Violation(session_id, run_id, what)


def _otherwise(session_id: str, published: Sequence[str], found: Sequence[str], verb: str) -> Iterator[Violation]:
    """The first run that comes too early; those that are missing are another check's."""
    there = set(found)
    wanted = [run_id for run_id in published if run_id in there]
    known = set(wanted)
    for right, run_id in zip(wanted, [run_id for run_id in found if run_id in known], strict=False):
        if run_id != right:
            yield Violation(session_id, run_id, f"it was {verb} where {right} should have been")
            return


def replies_differ(case: Case) -> Iterator[Violation]:
    """Runs that were answered in two ways, or otherwise than is stored."""
    for run_id, bodies in case.bodies.items():
        if run_id not in case.session_of:
            yield case.of_run(run_id, "nobody asked for it, and it has a reply")
            continue
        if len(bodies) > 1:
            yield case.of_run(run_id, f"it has {len(bodies)} different replies")
        stored = case.evidence.receipts.get(run_id)
        if stored is not None and stored not in bodies:
            yield case.of_run(run_id, "its reply is not the stored one")
        content = case.replies[run_id]["content"]
        if isinstance(content, dict) and content["run"] != run_id:
            yield case.of_run(run_id, f"its reply is the answer to {content['run']}")


def recorded_steps_repeated(case: Case) -> Iterator[Violation]:
    """Steps that were called again after they were recorded: the journal had them, or a later step had begun."""
    late: dict[tuple[str, str], float] = {}
    for call, recorded in case.late_calls:
        if not case.was_thawed(call, recorded):
            late.setdefault((call.run_id, call.step), call.began - recorded)
    for (run_id, step), seconds in late.items():
        yield case.of_run(run_id, f"its step {step} was called {seconds:.3f} s after it was recorded")


def unrepeatable_steps_repeated(case: Case) -> Iterator[Violation]:
    """Steps that were not declared repeatable, and were called twice, recorded or not."""
    calls = Counter((call.run_id, call.step) for call in case.evidence.calls if call.step in UNREPEATABLE)
    for (run_id, step), number in calls.items():
        if number > 1:
            yield case.of_run(run_id, f"its step {step}, which is not repeatable, was called {number} times")


def unexpected_errors(case: Case) -> Iterator[Violation]:
    """Turns that failed, and not for the death of their worker in the middle of a step."""
    for run_id, reply in case.replies.items():
        if reply["status"] == "ERROR" and (code := reply["error"]["code"]) not in EXPECTED_ERRORS:
            yield case.of_run(run_id, f"it failed: {code}: {reply['error']['message']}")


def stray_unlocks(case: Case) -> Iterator[Violation]:
    """Locks that were given back once too often: what else holds one then, a turn, goes on without it."""
    for _ in range(case.evidence.stray_unlocks):
        yield Violation("?", "?", "a lock was given back that its connection did not have")


CHECKS: Final[Mapping[str, Check]] = {
    check.__name__: check
    for check in (
        lost,
        duplicated,
        reordered,
        replies_differ,
        recorded_steps_repeated,
        unrepeatable_steps_repeated,
        unexpected_errors,
        *CONVERSATION_CHECKS,
        *WATCHED_CHECKS,
        stray_unlocks,
    )
}


def violations(evidence: Evidence) -> dict[str, list[Violation]]:
    """Return what each check found, by its name."""
    case = Case(evidence)
    return {name: list(check(case)) for name, check in CHECKS.items()}


def calls_of_thawed_workers(evidence: Evidence) -> int:
    """Return how many calls of recorded steps are not held against the worker, since it was frozen meanwhile."""
    case = Case(evidence)
    return sum(case.was_thawed(call, recorded) for call, recorded in case.late_calls)


def error_codes(evidence: Evidence) -> dict[str, int]:
    """Return how many runs were answered with an error, by its code."""
    codes = Counter(reply["error"]["code"] for reply in Case(evidence).replies.values() if reply["error"])
    return dict(sorted(codes.items()))
