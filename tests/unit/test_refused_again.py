"""A refused request that is delivered again is answered with the same bytes, as every other is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, cast

import pytest
from pydantic import SecretStr

from schemas.ids import SessionType
from schemas.replies import RunReply
from schemas.requests import RunRequest
from tests.unit.examples import (
    NOW,
    FakeMessage,
    a_claim,
    a_delivery,
    a_receipt,
    a_request,
    a_session,
    executor_of,
)
from worker.executors.registry import Executors
from worker.executors.turn import Turn
from worker.intake.delivery import Delivery, RequestDelivery
from worker.replies.in_order import RepliesInOrder
from worker.replies.replies import ReplyPublisher
from worker.sessions.claim import Claim, Receipt, SessionRow
from worker.sessions.lanes import Lane
from worker.sessions.store import SessionStore
from worker.sessions.summaries import Summaries
from worker.settings import Settings
from worker.turn import TurnTaker
from worker.turns.ending import Ending
from worker.turns.running import RunningRuns


class _Claimed:
    """A claimed session that keeps the answers it is given."""

    def __init__(self, request: RunRequest, claim: Claim, receipts: dict[str, Receipt]) -> None:
        self.request, self.claim = request, claim
        self._receipts = receipts

    def telling_of_loss(self, _: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    async def keep_answer(self, _: RunReply, body: bytes) -> None:
        self._receipts[self.request.run_id] = a_receipt(self.request, reply=body)


class _Sessions:
    """One session, and the receipts."""

    first_lane = Lane(SecretStr(""), "ai", 0)

    def __init__(self, session: SessionRow | None) -> None:
        self._session = session
        self._receipts: dict[str, Receipt] = {}

    @asynccontextmanager
    async def claimed(self, request: RunRequest, _: int | None, **_options: bool) -> AsyncIterator[_Claimed]:
        claim = a_claim(session=self._session, receipt=self._receipts.get(request.run_id))
        yield _Claimed(request, claim, self._receipts)


class _Replies:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def publish(self, body: bytes, _: RunRequest, __: Delivery) -> bool:
        self.bodies.append(body)
        return True


async def _echo(turn: Turn) -> str:
    return turn.input


async def _never(*_: object) -> None:
    raise AssertionError("nothing goes to the dead letters")


@pytest.mark.parametrize(
    ("asked", "session", "properties", "code"),
    [
        ({"team_id": "unknown"}, None, {}, "unknown_target"),
        ({"user_id": "u2"}, {"user_id": "u1"}, {}, "session_forbidden"),
        ({}, {"session_type": SessionType.AGENT}, {}, "session_target_mismatch"),
        ({}, None, {"priority": 5}, "unsupported_property"),
        ({"deadline": NOW.isoformat()}, None, {}, "deadline_exceeded"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_a_refused_request_that_is_delivered_again_later_gets_the_same_bytes(
    asked: Mapping[str, Any],
    session: Mapping[str, Any] | None,
    properties: Mapping[str, Any],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions, replies = _Sessions(None if session is None else a_session(**session)), _Replies()
    executor = executor_of(_echo)
    executors: Executors = {executor.target: executor}
    store = cast("SessionStore", sessions)
    in_order = RepliesInOrder(cast("ReplyPublisher", replies))
    running = RunningRuns(store)
    taker = TurnTaker(
        *(store, executors, in_order, Summaries(store), Settings()),
        running=running,
        ending=Ending("ai"),
        publish=lambda *_: None,
        bury=_never,
    )
    request, messages = a_request(**asked), []
    for seconds in (1_900_000_000.0, 1_900_000_100.0):
        monkeypatch.setattr(time, "time", lambda now=seconds: now)
        messages.append(FakeMessage(**properties))
        await taker.take(RequestDelivery(a_delivery(messages[-1]), request))
        await in_order.drained()
    first, second = replies.bodies
    assert code in first.decode()
    assert [message.acknowledged for message in messages] == [1, 1]
    assert second == first
