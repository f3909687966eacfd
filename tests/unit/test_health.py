"""Readiness: the first thing that is wrong is its reason, and nothing that is only the next one's consequence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from worker.operations.health import Condition, Health
from worker.operations.probes import Answer

WORKING = Condition(lanes=True, room=True, broker=True, publishing=True, consuming=True, standing_by=False)


def told(health: Health) -> tuple[int, dict[str, Any]]:
    answer = health.pages["/readyz"]()
    return answer.status, json.loads(answer.body)


def of(condition: Condition) -> Health:
    health = Health()
    health.started(lambda: condition, {})
    return health


def test_a_worker_that_consumes_is_ready() -> None:
    code, body = told(of(WORKING))
    assert code == 200
    assert body == {
        "ready": True,
        "reason": None,
        "lanes": True,
        "room": True,
        "broker": True,
        "publishing": True,
        "consuming": True,
        "standing_by": False,
    }


def test_one_that_stands_by_is_ready() -> None:
    assert told(of(replace(WORKING, consuming=False, standing_by=True)))[0] == 200


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (("lanes", "consuming"), "Postgres can't be reached, or takes no writes"),
        (("room", "consuming"), "Postgres's disk is full"),
        (("broker", "consuming"), "RabbitMQ can't be reached"),
        (("publishing",), "RabbitMQ takes no messages: it has a memory or disk alarm"),
        (("consuming",), "the requests are not consumed yet"),
        (("lanes", "broker", "consuming"), "Postgres can't be reached, or takes no writes"),
    ],
)
def test_one_that_lacks_something_is_not_and_says_what(missing: tuple[str, ...], reason: str) -> None:
    code, body = told(of(replace(WORKING, **dict.fromkeys(missing, False))))
    assert (code, body["ready"], body["reason"]) == (503, False, reason)
    assert [name for name in missing if body[name]] == []


def test_one_that_stands_by_needs_its_servers_all_the_same() -> None:
    assert told(of(replace(WORKING, lanes=False, consuming=False, standing_by=True)))[0] == 503


def test_before_its_start_it_is_alive_and_not_ready() -> None:
    health = Health()
    assert health.pages["/healthz"]().status == 200
    assert (told(health)[0], told(health)[1]["reason"]) == (503, "the worker is starting")


def test_what_there_is_to_see_of_a_worker_is_there_once_it_has_started() -> None:
    health = Health()
    pages = health.pages
    assert [pages[path]().status for path in ("/metrics", "/turns")] == [503, 503]
    health.started(lambda: WORKING, {"/metrics": lambda: Answer(200, b"1"), "/turns": lambda: Answer(200, b"2")})
    assert [pages[path]().body for path in ("/metrics", "/turns")] == [b"1", b"2"]
    health.draining()
    assert pages["/metrics"]().body == b"1"


def test_when_it_drains_it_is_alive_and_not_ready() -> None:
    health = of(WORKING)
    health.draining()
    assert health.pages["/healthz"]().status == 200
    assert (told(health)[0], told(health)[1]["reason"]) == (503, "the worker is draining")
