"""What went wrong with the events of watched runs. Pure.

Events are kept by nobody: what is in flight is lost with its worker, its connection or its consumer. What is promised
also then: an attempt has each number once, and tells them in order; its last event is `run_finished`, with the reply,
which is told again, as the only event of a further attempt, where the request is delivered again.
Where nothing was upset, none is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from tests.chaos.case import Case, Check, Violation
from tests.chaos.evidence import Event, Evidence, Upset

_LOSING: Final = (Upset.BROKER, Upset.CUT, Upset.FREEZE, Upset.SLOW, Upset.UNWATCHED)
"""What loses events that are in flight; over a slow line they are for seconds, and then lost by what comes next."""
_ENDING: Final = (*_LOSING, Upset.DEATH, Upset.POSTGRES)
"""After which an end may not be told: the commit's answer was lost, too, and the stored reply is found later."""
_AROUND_SECONDS: Final = 2.0
"""So long before and after something is upset, what is in flight can be lost."""

Attempts = Mapping[tuple[str, int], Sequence[Event]]


def _attempts(events: Sequence[Event]) -> Attempts:
    attempts: dict[tuple[str, int], list[Event]] = defaultdict(list)
    for event in events:
        attempts[event.attempt].append(event)
    return attempts


def events_repeated(case: Case) -> Iterator[Violation]:
    """Attempts that told two things under one number, and runs that ended twice."""
    ends: dict[str, Event] = {}
    for (run_id, attempt), events in _attempts(case.evidence.events).items():
        told: dict[int, Event] = {}
        for event in events:
            if told.setdefault(event.number, event).fields != event.fields:
                first = told[event.number].type
                yield case.of_run(run_id, f"attempt {attempt}, event {event.number}: {first}, and {event.type}")
                break
        for event in events:
            if event.type != "run_finished" or _is_told_again(event):
                continue
            if ends.setdefault(run_id, event).fields != event.fields:
                yield case.of_run(run_id, f"it finished in attempt {attempt}, and before")


def _is_told_again(event: Event) -> bool:
    """Whether it is an end that is told again, as the only event of its attempt, or of a run that was refused."""
    return event.type == "run_finished" and event.number == 1


def events_out_of_order(case: Case) -> Iterator[Violation]:
    """Attempts whose numbers fell, that began with something else than run_started, or went on after their end."""
    for (run_id, attempt), events in _attempts(case.evidence.events).items():
        where = f"attempt {attempt}, event"
        for before, event in pairwise(events):
            if event.number < before.number:
                yield case.of_run(run_id, f"{where} {event.number} came after {before.number}")
                break
        for event in events:
            if (event.number == 1) != (event.type == "run_started") and not _is_told_again(event):
                yield case.of_run(run_id, f"{where} {event.number} is {event.type}")
            if event.type == "run_finished" and (last := max(one.number for one in events)) > event.number:
                yield case.of_run(run_id, f"{where} {last} is told after its end")


def events_missing(case: Case) -> Iterator[Violation]:
    """Numbers that are missing in the middle, and ends that were not told, though nothing was upset at the time."""
    attempts = _attempts(case.evidence.events)
    for (run_id, attempt), events in attempts.items():
        # When it happened, by the worker; when it came, by the consumer.
        told = 0, float(events[0].fields["time"])
        for event in events:
            if event.number > told[0] + 1 and not case.upset(told[1] - _AROUND_SECONDS, event.at, *_LOSING):
                yield case.of_run(run_id, f"attempt {attempt}: event {told[0] + 1} is missing")
                break
            told = max(told, (event.number, event.at))
    for run_id, asked in case.evidence.asked.items():
        reply = case.replies.get(run_id)
        if not asked.stream or reply is None or reply["turn"] is None:
            continue
        ended = reply["completed_at"]
        told_in = (attempts.get((run_id, reply["attempt"] + again), ()) for again in (0, 1))
        finished = any(one.type == "run_finished" for events in told_in for one in events)
        if not finished and not case.upset(ended - _AROUND_SECONDS, ended + 1 + _AROUND_SECONDS, *_ENDING):
            yield case.of_run(run_id, f"the end of attempt {reply['attempt']} was not told")


def events_differ(case: Case) -> Iterator[Violation]:
    """Runs that ended in another way than their reply says, wrote another answer, or were not watched at all."""
    for event in case.evidence.events:
        if not case.asked(event.run_id).stream:
            yield case.of_run(event.run_id, f"nobody watches it, and it told of {event.type}")
        elif event.type == "run_finished" and event.fields["reply"] != case.replies.get(event.run_id):
            yield case.of_run(event.run_id, "its run_finished has another reply")
    for (run_id, _), events in _attempts(case.evidence.events).items():
        answer = _written(events)
        if answer is not None and answer != (content := events[-1].fields["reply"]["content"]):
            yield case.of_run(run_id, f"it wrote {answer!r}, and answered {content!r}")


def _written(events: Sequence[Event]) -> str | None:
    """Return what an attempt wrote, as its answer; None if it is not all there, or no model wrote it."""
    first, last = events[0], events[-1]
    is_whole = [event.number for event in events] == list(range(1, last.number + 1)) and last.type == "run_finished"
    if not is_whole or first.type != "run_started" or first.fields["resumed_behind"] is not None:
        return None
    reply = last.fields["reply"]
    if reply["status"] != "COMPLETED" or not isinstance(reply["content"], str):
        return None
    own = [one for one in events if one.type == "content_delta" and one.fields.get("member_run_id") is None]
    return "".join(event.fields["text"] for event in own)


WATCHED_CHECKS: Final[Sequence[Check]] = (events_repeated, events_out_of_order, events_missing, events_differ)


def watched(evidence: Evidence) -> dict[str, int]:
    """Return how much the checks here had to look at."""
    resumed = sum(one.type == "run_started" and one.fields["resumed_behind"] is not None for one in evidence.events)
    return {
        "watched": sum(event.type == "run_finished" for event in evidence.events),
        "watched_to_the_letter": sum(bool(_written(one)) for one in _attempts(evidence.events).values()),
        "watched_resumed": resumed,
    }
