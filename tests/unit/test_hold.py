"""The hold on a session whose lane is lost under a turn that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

from tests.support.waiting import eventually
from tests.unit.examples import a_claim, a_request, a_session
from worker.errors import SessionBusyElsewhere, StoreUnavailable
from worker.sessions.claim import Claim
from worker.sessions.store import ClaimedSession, SessionStore
from worker.turns.hold import Hold


class _Claimed:
    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._told: list[Callable[[], None]] = []

    @contextmanager
    def telling_of_loss(self, told: Callable[[], None]) -> Iterator[None]:
        self._told.append(told)
        yield

    def lose(self) -> None:
        for told in self._told:
            told()


class _Sessions:
    """A session's lock, which can be taken or not."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.unavailable: list[Exception] = []
        self.held: list[_Claimed] = []
        self.claims = 0

    @asynccontextmanager
    async def claimed(self, *_: object) -> AsyncIterator[_Claimed]:
        self.claims += 1
        if self.unavailable:
            raise self.unavailable.pop(0)
        claimed = _Claimed(self.claim)
        self.held.append(claimed)
        try:
            yield claimed
        finally:
            self.held.remove(claimed)


def _hold(sessions: _Sessions) -> Hold:
    return Hold(cast("SessionStore", sessions), a_request())


async def test_a_session_is_held_again_when_its_lane_is_lost_until_it_is_released() -> None:
    before = _Claimed(a_claim())
    sessions = _Sessions(before.claim)
    hold = _hold(sessions)
    with hold.over(cast("ClaimedSession", before)):
        assert sessions.claims == 0
        before.lose()
        await eventually(lambda: len(sessions.held) == 1)
    assert len(sessions.held) == 1, "it is held on, after the block, until it is claimed again"
    await hold.release()
    assert sessions.held == []


async def test_it_is_tried_again_while_the_session_can_not_be_had_and_after_the_next_loss() -> None:
    before = _Claimed(a_claim())
    sessions = _Sessions(before.claim)
    sessions.unavailable = [StoreUnavailable("away"), SessionBusyElsewhere("s1")]
    hold = _hold(sessions)
    with hold.over(cast("ClaimedSession", before)):
        before.lose()
        await eventually(lambda: len(sessions.held) == 1)
        first = sessions.held[0]
        first.lose()
        await eventually(lambda: sessions.held != [] and sessions.held[0] is not first)
    await hold.release()


async def test_a_session_that_others_have_gone_on_with_is_let_go() -> None:
    before = _Claimed(a_claim(session=a_session(turn_seq=3)))
    sessions = _Sessions(a_claim(session=a_session(turn_seq=4)))
    hold = _hold(sessions)
    with hold.over(cast("ClaimedSession", before)):
        before.lose()
        await eventually(lambda: sessions.claims == 1)
        await asyncio.sleep(0)
    assert sessions.held == []
    await hold.release()
