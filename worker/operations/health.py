"""Health: whether this worker lives, and whether it takes requests; what is wrong, if it does not.

    /healthz  200 as long as the event loop comes round
    /readyz   200 while requests are consumed, or could be: a worker whose fleet has others for all partitions stands by
    /metrics  for Prometheus; see deploy/grafana/README.md
    /turns    what is executed here now; see worker.operations.turns_page

Whoever reaches the port can read all of them, ids of runs and sessions among them: it belongs on a private network.
What is said in conversations is on none.

A worker that is not ready needs no restart: it waits for what is away, and goes on when that is back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

from pydantic_core import to_json

from worker.operations.probes import Answer, Pages


@dataclass(frozen=True, slots=True)
class Condition:
    """The parts of a worker's readiness, each as it is now."""

    lanes: bool
    """Every connection to Postgres that sessions are locked on is there."""
    room: bool
    """Postgres has room to store turns."""
    broker: bool
    """The connection to RabbitMQ that requests come by is there."""
    publishing: bool
    """RabbitMQ takes messages: there is no memory or disk alarm."""
    consuming: bool
    """Everything that is this worker's is consumed, and it has something."""
    standing_by: bool
    """Others have all partitions."""

    @property
    def parts(self) -> dict[str, bool]:
        """What must all be so for the worker to be ready, by short names."""
        return {
            "lanes": self.lanes,
            "room": self.room,
            "broker": self.broker,
            "publishing": self.publishing,
            "taking": self.consuming or self.standing_by,
        }

    def problem(self) -> str | None:
        """Return what keeps the worker from being ready, the cause before what follows from it; None: nothing."""
        problems = {
            "Postgres can't be reached, or takes no writes": not self.lanes,
            "Postgres's disk is full": not self.room,
            "RabbitMQ can't be reached": not self.broker,
            "RabbitMQ takes no messages: it has a memory or disk alarm": not self.publishing,
            "the requests are not consumed yet": not (self.consuming or self.standing_by),
        }
        return next((problem for problem, is_so in problems.items() if is_so), None)


PAGES_OF_STARTED: Final = ("/metrics", "/turns")
"""The pages of which there is nothing to tell before the start."""

_UNKNOWN: Final = Condition(lanes=False, room=False, broker=False, publishing=False, consuming=False, standing_by=False)


class Health:
    """What probes are told of a worker, from before its start to its end."""

    def __init__(self) -> None:
        self._condition: Callable[[], Condition] = lambda: _UNKNOWN
        self._phase: str | None = "the worker is starting"
        self._of_started: Pages = {}

    @property
    def pages(self) -> Pages:
        """The answers, by path."""
        later = {path: partial(self._later, path) for path in PAGES_OF_STARTED}
        return {"/healthz": self._alive, "/readyz": self._ready, **later}

    def started(self, condition: Callable[[], Condition], pages: Pages) -> None:
        """Say that the worker has started; from now on, ask it for its condition, and for PAGES_OF_STARTED."""
        self._condition = condition
        self._phase = None
        self._of_started = pages

    def draining(self) -> None:
        """Say that the worker takes no more requests for good."""
        self._phase = "the worker is draining"

    def _alive(self) -> Answer:
        return Answer(200, b'{"alive":true}\n')

    def _later(self, path: str) -> Answer:
        page = self._of_started.get(path)
        return Answer(503, b"the worker is starting\n", "text/plain") if page is None else page()

    def _ready(self) -> Answer:
        condition = self._condition()
        reason = self._phase or condition.problem()
        told = {"ready": reason is None, "reason": reason, **asdict(condition)}
        return Answer(503 if reason else 200, to_json(told) + b"\n")
