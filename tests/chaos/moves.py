"""What users do beside asking: they cancel, interrupt, and don't want to wait. Each at a moment by chance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tests.chaos.evidence import Call, Cancel
from tests.chaos.producer import Producer
from tests.chaos.script import BEGUN, BETWEEN
from tests.chaos.stub import ModelStub

if TYPE_CHECKING:
    from tests.chaos.load import Load, Request, Session

_HELD_SECONDS: Final = 10.0
"""So long a run is waited for to come to its step: it may be cancelled, or wait for a server, meanwhile."""
_LONGEST_BEFORE_SECONDS: Final = 2.5
_LONGEST_LATER_SECONDS: Final = 0.3
_STRANGER: Final = "eve"

_STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "echo": (BEGUN,),
    "steps": (BEGUN, "first", BETWEEN, "pay", "last"),
    "team": ("leader/1", "reader/1", "buyer/1", "buyer/pay", "buyer/2", "leader/2"),
}


class Moves:
    """What is done in a session, while its `publishing` is held."""

    def __init__(self, load: Load, producer: Producer, stub: ModelStub, rng: random.Random) -> None:
        self._load = load
        self._producer = producer
        self._stub = stub
        self._rng = rng
        self.cancels: list[Cancel] = []
        """What was said to be cancelled."""

    async def any(self, session: Session) -> None:
        """Make one of the moves."""
        moves: tuple[Callable[[Session], Awaitable[None]], ...] = (
            self.cancel_before,
            self.cancel_any_time,
            self.cancel_waiting,
            self.cancel_running,
            self.cancel_too_late,
            self.cancel_for_a_stranger,
            self.interrupt,
            self.interrupt,
            self.do_not_wait,
        )
        await self._rng.choice(moves)(session)

    async def cancel_before(self, session: Session) -> None:
        """Cancel a run, and then ask for it."""
        request = self._load.new_request(session)
        await self._cancel(request, before=True)
        await asyncio.sleep(self._rng.uniform(0, _LONGEST_BEFORE_SECONDS))
        await self._load.publish(request)

    async def cancel_any_time(self, session: Session) -> None:
        """Ask, and cancel a moment later."""
        request = await self._ask(session)
        await asyncio.sleep(self._rng.uniform(0, _LONGEST_LATER_SECONDS))
        await self._cancel(request)

    async def cancel_waiting(self, session: Session) -> None:
        """Cancel what waits for a run that is busy, which then goes on."""
        _, call = await self._busy(session)
        request = await self._ask(session)
        await self._cancel(request)
        await asyncio.sleep(self._rng.uniform(0, _LONGEST_LATER_SECONDS))
        self._let_go(call)

    async def cancel_running(self, session: Session) -> None:
        """Cancel a run that is busy."""
        request, _ = await self._busy(session)
        await self._cancel(request)

    async def cancel_too_late(self, session: Session) -> None:
        """Cancel what is answered already."""
        request = await self._ask(session)
        with suppress(TimeoutError):
            async with asyncio.timeout(_HELD_SECONDS):
                await request.answered.wait()
        await self._cancel(request)

    async def cancel_for_a_stranger(self, session: Session) -> None:
        """Cancel a busy run in the name of somebody else, for whom nothing is changed."""
        request, call = await self._busy(session)
        await self._cancel(request, user_id=_STRANGER)
        await asyncio.sleep(self._rng.uniform(0, _LONGEST_LATER_SECONDS))
        self._let_go(call)

    async def interrupt(self, session: Session) -> None:
        """Ask, ask something else, and interrupt both."""
        await self._busy(session)
        if self._rng.random() < 1 / 2:
            await self._ask(session)
        await self._ask(session, on_busy="interrupt")

    async def do_not_wait(self, session: Session) -> None:
        """Ask what is to be refused if the session is busy, which it is as a rule."""
        _, call = await self._busy(session)
        await self._ask(session, on_busy="reject")
        await asyncio.sleep(self._rng.uniform(0, _LONGEST_LATER_SECONDS))
        self._let_go(call)

    async def _ask(self, session: Session, *, hold: str = "", on_busy: str = "enqueue") -> Request:
        request = self._load.new_request(session, hold=hold, on_busy=on_busy)
        await self._load.publish(request)
        return request

    async def _busy(self, session: Session) -> tuple[Request, Call | None]:
        """Ask what is held at a step; return it, and the call that is held, if it came to that in time."""
        step = self._rng.choice(_STEPS[session.team_id])
        request = await self._ask(session, hold=step)
        held = asyncio.ensure_future(self._stub.held(request.run_id, step))
        answered = asyncio.ensure_future(request.answered.wait())
        try:
            await asyncio.wait({held, answered}, timeout=_HELD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if held.done():
                return request, held.result()
            # It waits for a server: held when nobody looks any more, it would only hold the others up.
            self._stub.do_not_hold(request.run_id, step)
            return request, None
        finally:
            held.cancel()
            answered.cancel()

    def _let_go(self, call: Call | None) -> None:
        if call is not None:
            self._stub.let_go(call)

    async def _cancel(self, request: Request, *, before: bool = False, user_id: str | None = None) -> None:
        """Say that it is cancelled; in the name of its own user, unless another one is given."""
        session = request.session
        # Noted first: it may have arrived also where that is not confirmed.
        self.cancels.append(Cancel(request.run_id, by_its_user=user_id is None, before=before))
        await self._producer.cancel(request.run_id, session.session_id, user_id or session.user_id)
