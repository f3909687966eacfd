"""The load: sessions that keep asking, one confirmed publish after the other, and what was answered to them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.chaos.evidence import Asked, Reply
from tests.chaos.moves import Moves
from tests.chaos.plan import Plan
from tests.chaos.producer import Producer
from tests.chaos.script import Order
from tests.chaos.stub import ModelStub
from tests.chaos.tally import Tally
from tests.support.broker import slot

_TICK_SECONDS: Final = 0.01
_UNROUTED: Final = 17
"""Every such session publishes without a slot, and costs the workers a hop."""


@dataclass(eq=False)
class Session:
    """A session of the load. Its publishes are one after the other: the first confirmed of each defines the order."""

    session_id: str
    team_id: str
    routing_key: str
    user_id: str | None = None
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: list[Request] = field(default_factory=list)
    """In the order of their first confirmed publish, of which only the last can be outstanding."""
    unanswered: int = 0


@dataclass(eq=False)
class Request:
    """A run request."""

    session: Session
    run_id: str
    body: bytes
    asked: Asked
    confirmed: int = 0
    """How many of its publishes were confirmed."""
    replies: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Load:
    """Publishes requests and counts their replies."""

    def __init__(self, plan: Plan, producer: Producer, stub: ModelStub, tally: Tally) -> None:
        self._plan = plan
        self._producer = producer
        self._tally = tally
        self._rng = random.Random(f"{plan.seed}/load")  # noqa: S311 - to be repeated, not to be secret
        self.sessions: dict[str, Session] = {}
        self.requests: dict[str, Request] = {}
        """Of every session, by run."""
        self.replies: list[Reply] = []
        """Every reply, in order."""
        self.moves = Moves(self, producer, stub, self._rng)
        self._asking: set[asyncio.Task[Request]] = set()
        self._usual = [
            self.session(
                f"{team_id}-{number:03}", team_id, routed=number % _UNROUTED != 0, user_id="ada" if number % 2 else None
            )
            for team_id, sessions in plan.sessions.items()
            for number in range(sessions)
        ]

    @property
    def outstanding(self) -> int:
        """How many requests have no reply yet."""
        return sum(session.unanswered for session in self.sessions.values())

    @property
    def confirmed(self) -> int:
        """How many requests were published so far."""
        return sum(request.confirmed > 0 for request in self.requests.values())

    def heard(self, reply: Reply) -> None:
        """Take note of a reply."""
        self.replies.append(reply)
        request = self.requests.get(reply.run_id)
        if request is None:
            return
        request.replies += 1
        if not request.answered.is_set():
            request.answered.set()
            request.session.unanswered -= 1

    def session(self, session_id: str, team_id: str, *, routed: bool = True, user_id: str | None = None) -> Session:
        """A new session."""
        made = Session(session_id, team_id, slot(session_id) if routed else session_id, user_id)
        self.sessions[session_id] = made
        return made

    async def run(self) -> None:
        """Publish as the plan has it, for as long as it says; then wait for the last confirm."""
        began = time.monotonic()
        due = 0.0
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - began) < self._plan.seconds:
                due_now = elapsed * self._plan.requests_per_second
                while due < due_now and (session := self._ready()) is not None:
                    moves = self._rng.random() < self._plan.moves
                    group.create_task(self._move(session) if moves else self._ask_as_usual(session))
                    due += 1
                    # So that the task takes the session's lock.
                    await asyncio.sleep(0)
                await asyncio.sleep(_TICK_SECONDS)

    async def ask(self, session: Session, *, hold: str = "", poison: bool = False) -> Request:
        """Publish a new request of a session, and return it when that is confirmed.

        It is published, and asked for its confirm, also if nobody waits for that any more.
        """
        task = asyncio.create_task(self._ask(session, hold=hold, poison=poison))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Wait until every publish is confirmed."""
        await asyncio.gather(*self._asking)

    async def _ask(self, session: Session, *, hold: str, poison: bool) -> Request:
        async with session.publishing:
            request = self.new_request(session, hold=hold, poison=poison)
            await self.publish(request)
        return request

    def new_request(
        self, session: Session, *, hold: str = "", poison: bool = False, on_busy: str = "enqueue"
    ) -> Request:
        """Make a session's next request, to be published next, and while the session's `publishing` is held."""
        run_id = f"{session.session_id}/{len(session.requests):05}"
        asked = Asked(stream=self._rng.random() < self._plan.watched, on_busy=on_busy)
        body: dict[str, Any] = {
            "run_id": run_id,
            "session_id": session.session_id,
            "team_id": session.team_id,
            "input": Order(run_id, hold=hold, poison=poison).text,
        }
        if session.user_id is not None:
            body["user_id"] = session.user_id
        if asked.stream:
            body["stream"] = True
        if on_busy != "enqueue":
            body["on_busy"] = on_busy
        request = Request(session, run_id, json.dumps(body).encode(), asked)
        session.requests.append(request)
        session.unanswered += 1
        self.requests[run_id] = request
        return request

    async def publish(self, request: Request) -> None:
        """Publish it, once more or for the first time."""
        if not request.asked.at:
            request.asked = replace(request.asked, at=time.time())
        await self._producer.publish(request.run_id, request.body, request.session.routing_key)
        request.confirmed += 1

    async def _ask_as_usual(self, session: Session) -> None:
        """Publish a new request; now and then it, or an old one of the session, once more."""
        async with session.publishing:
            request = self.new_request(session)
            await self.publish(request)
            if self._rng.random() < self._plan.duplicated:
                again = self._rng.choice((request, self._rng.choice(session.requests)))
                await self.publish(again)
                self._tally.counts["duplicate_publishes"] += 1

    async def _move(self, session: Session) -> None:
        async with session.publishing:
            await self.moves.any(session)

    def _ready(self) -> Session | None:
        """A session by chance that may ask now; None if there is none, or too many wait already."""
        if self.outstanding >= self._plan.outstanding:
            return None
        for _ in range(10):
            session = self._rng.choice(self._usual)
            if session.unanswered < self._plan.ahead and not session.publishing.locked():
                return session
        return None

    def behind(self) -> dict[str, int]:
        """Of the requests that have a reply, those that were published more often than replied to, and how much."""
        return {
            request.run_id: request.confirmed - request.replies
            for request in self.requests.values()
            if request.answered.is_set() and request.confirmed > request.replies
        }

    def published(self) -> dict[str, list[str]]:
        """Of each session that asked anything its runs, in order."""
        runs: dict[str, list[str]] = defaultdict(list)
        for request in self.requests.values():
            if request.confirmed:
                runs[request.session.session_id].append(request.run_id)
        return dict(runs)
