"""The checks of watched runs: each finds what is planted for it, and nothing where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checks import CHECKS, violations
from tests.chaos.evidence import Asked, Event, Evidence, Reply, Upset, UpsetTime
from tests.chaos.watched import watched

REPLY: dict[str, Any] = {
    "run_id": "s/1",
    "status": "COMPLETED",
    "turn": 1,
    "attempt": 2,
    "content": "Paris.",
    "completed_at": 20,
    "error": None,
}


def event(type_: str, number: int, at: float, *, attempt: int = 2, run_id: str = "s/1", **fields: Any) -> Event:
    told = {"type": type_, "run_id": run_id, "attempt": attempt, "number": number, "time": at, **fields}
    return Event(at + 0.1, told)


STARTED = event("run_started", 1, 12.0, resumed_behind=None)
MEMBER = event("content_delta", 2, 13.0, text="Rome?", member_run_id="m")
FIRST = event("content_delta", 3, 14.0, text="Par", member_run_id=None)
LAST = event("content_delta", 4, 15.0, text="is.", member_run_id=None)
FINISHED = event("run_finished", 5, 20.0, reply=REPLY)
OLD = [
    event("run_started", 1, 10.0, attempt=1, resumed_behind=None),
    event("content_delta", 2, 10.5, attempt=1, text="P"),
]
TOLD = [*OLD, STARTED, MEMBER, FIRST, LAST, FINISHED]
BODY = json.dumps(REPLY).encode()
GOOD = Evidence(
    published={"s": ["s/1"]},
    replies=[Reply("s/1", BODY)],
    asked={"s/1": Asked(at=9.0, stream=True)},
    events=TOLD,
    stored={"s": ["s/1"]},
    stored_times={"s/1": 1},
    receipts={"s/1": BODY},
)


def telling(events: Sequence[Event]) -> Evidence:
    return replace(GOOD, events=events)


def test_nothing_is_found_where_all_is_well() -> None:
    assert violations(GOOD) == {name: [] for name in CHECKS}


def test_what_is_watched_is_counted() -> None:
    assert watched(GOOD) == {"watched": 1, "watched_to_the_letter": 1, "watched_resumed": 0}
    resumed = replace(STARTED, fields={**STARTED.fields, "resumed_behind": "first#1"})
    found = watched(telling([resumed, MEMBER, FIRST, LAST, FINISHED]))
    assert found == {"watched": 1, "watched_to_the_letter": 0, "watched_resumed": 1}


OTHER_REPLY = replace(FINISHED, fields={**FINISHED.fields, "reply": REPLY | {"turn": 2}})


@pytest.mark.parametrize(
    ("check", "events", "words"),
    [
        (
            "events_repeated",
            [*TOLD[:-1], event("content_delta", 4, 16.0, text="is.", member_run_id=None), FINISHED],
            "attempt 2, event 4: content_delta, and content_delta",
        ),
        ("events_repeated", [*OLD, event("run_finished", 3, 11.0, attempt=1, reply=REPLY), *TOLD[2:]], "and before"),
        ("events_out_of_order", [*OLD, STARTED, MEMBER, LAST, FIRST, FINISHED], "event 3 came after 4"),
        (
            "events_out_of_order",
            [*TOLD, event("content_delta", 6, 21.0, text="!", member_run_id=None)],
            "event 6 is told after its end",
        ),
        ("events_out_of_order", [*OLD, replace(STARTED, fields={**STARTED.fields, "type": "custom"})], "1 is custom"),
        ("events_missing", [*OLD, STARTED, MEMBER, LAST, FINISHED], "attempt 2: event 3 is missing"),
        ("events_missing", [*OLD, MEMBER, FIRST, LAST, FINISHED], "attempt 2: event 1 is missing"),
        ("events_missing", TOLD[:-1], "the end of attempt 2 was not told"),
        ("events_differ", [*TOLD[:-1], OTHER_REPLY], "has another reply"),
        (
            "events_differ",
            [*OLD, STARTED, MEMBER, FIRST, replace(LAST, fields={**LAST.fields, "text": "!"}), FINISHED],
            "it wrote 'Par!', and answered 'Paris.'",
        ),
        ("events_differ", [*TOLD, event("run_started", 1, 12.0, run_id="s/2", resumed_behind=None)], "nobody watches"),
    ],
)
def test_a_planted_violation_is_found_by_its_check(check: str, events: Sequence[Event], words: str) -> None:
    assert any(words in one.what for one in violations(telling(events))[check])


@pytest.mark.parametrize("kind", [Upset.BROKER, Upset.CUT, Upset.FREEZE, Upset.SLOW, Upset.UNWATCHED])
def test_what_is_in_flight_may_be_lost(kind: Upset) -> None:
    lost = telling([*OLD, STARTED, MEMBER, LAST, FINISHED])
    assert violations(replace(lost, upsets=[UpsetTime(kind, 14.0, 14.0)]))["events_missing"] == []
    assert violations(replace(lost, upsets=[UpsetTime(kind, 17.5, 18.0)]))["events_missing"]


@pytest.mark.parametrize("kind", [Upset.DEATH, Upset.POSTGRES])
def test_an_end_is_not_told_where_the_worker_died_or_does_not_know_of_it(kind: Upset) -> None:
    lost = telling(TOLD[:-1])
    assert violations(replace(lost, upsets=[UpsetTime(kind, 20.5, 20.5)]))["events_missing"] == []
    assert violations(replace(lost, upsets=[UpsetTime(kind, 25.0, 25.0)]))["events_missing"]


def test_a_worker_s_death_excuses_no_gap() -> None:
    lost = replace(telling([*OLD, STARTED, MEMBER, LAST, FINISHED]), upsets=[UpsetTime(Upset.DEATH, 14.0, 14.0)])
    assert violations(lost)["events_missing"]
