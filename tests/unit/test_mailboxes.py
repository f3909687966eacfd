"""Mailboxes: a session's requests one after the other in their order, sessions side by side."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import pytest
from structlog.typing import EventDict

from schemas.errors import ErrorCode
from tests.support.waiting import eventually
from tests.unit.examples import a_request_delivery, everything_that_can_run
from worker.errors import RequestRefused
from worker.intake import mailbox
from worker.intake.delivery import ChannelLife, Delivery, RequestDelivery
from worker.intake.mailbox import Mailboxes


class Taker:
    """Takes requests; each goes on until the test ends it, and raises what the test says."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.taken: list[str] = []
        self.running: dict[str, int] = defaultdict(int)
        self.buried: list[tuple[Delivery, RequestRefused]] = []
        self.errors: dict[str, list[BaseException]] = {}
        self._ends: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.busy: list[tuple[str, list[str]]] = []
        """Who came behind whom."""
        self.mailboxes = Mailboxes(
            self.take, lambda delivery, refusal: self.buried.append((delivery, refusal)), self._came_behind
        )

    def _came_behind(self, received: RequestDelivery, earlier: Sequence[RequestDelivery]) -> None:
        self.busy.append((received.request.run_id, [one.request.run_id for one in earlier]))

    async def take(self, received: RequestDelivery) -> None:
        run_id, session_id = received.request.run_id, received.request.session_id
        self.begun.append(run_id)
        self.running[session_id] += 1
        assert self.running[session_id] == 1, "two turns of one session at once"
        try:
            if errors := self.errors.get(run_id):
                raise errors.pop(0)
            await self._ends[run_id].wait()
        finally:
            self.running[session_id] -= 1
        self.taken.append(run_id)

    def end(self, *run_ids: str) -> None:
        for run_id in run_ids:
            self._ends[run_id].set()

    def put(self, *run_ids: str, session: str = "s1", life: ChannelLife | None = None) -> None:
        for run_id in run_ids:
            self.mailboxes.put(a_request_delivery(run_id, session, life=life))


@pytest.fixture
def taker(monkeypatch: pytest.MonkeyPatch) -> Taker:
    monkeypatch.setattr(mailbox, "_RETRY_SECONDS", (0.0,) * len(mailbox._RETRY_SECONDS))
    return Taker()


async def test_a_session_s_requests_are_taken_one_after_the_other_in_their_order(taker: Taker) -> None:
    taker.put("a", "b", "c")
    await everything_that_can_run()
    assert taker.begun == ["a"]
    taker.end("c", "b")
    await everything_that_can_run()
    assert taker.begun == ["a"]
    taker.end("a")
    await taker.mailboxes.drained()
    assert taker.begun == taker.taken == ["a", "b", "c"]


async def test_sessions_are_served_side_by_side(taker: Taker) -> None:
    for number in range(100):
        taker.put(f"first {number}", f"second {number}", session=f"s{number}")
    await everything_that_can_run()
    assert taker.begun == [f"first {number}" for number in range(100)]
    assert len(taker.mailboxes) == 200
    taker.end(*(f"first {number}" for number in range(50)))
    await everything_that_can_run()
    assert taker.begun[100:] == [f"second {number}" for number in range(50)]
    await taker.mailboxes.stop()


async def test_a_request_that_comes_while_another_runs_is_next_and_one_after_all_are_done_begins_at_once(
    taker: Taker,
) -> None:
    taker.put("a")
    await everything_that_can_run()
    taker.put("b")
    taker.end("a", "b")
    await taker.mailboxes.drained()
    assert len(taker.mailboxes) == 0
    taker.put("c")
    await everything_that_can_run()
    assert taker.begun == ["a", "b", "c"]
    await taker.mailboxes.stop()


async def test_of_a_lost_channel_s_requests_the_running_one_goes_on_and_those_that_wait_are_dropped(
    taker: Taker,
) -> None:
    lost, other = ChannelLife(), ChannelLife()
    taker.put("a", "b", life=lost)
    taker.put("c", life=other)
    taker.put("d", life=lost)
    await everything_that_can_run()
    lost.end()
    taker.mailboxes.forget_dead()
    assert len(taker.mailboxes) == 2
    taker.end("a", "c")
    await taker.mailboxes.drained()
    assert taker.taken == ["a", "c"]


async def test_a_request_that_waited_when_its_channel_died_is_not_begun_even_before_it_is_forgotten(
    taker: Taker,
) -> None:
    lost = ChannelLife()
    taker.put("a", "b", life=lost)
    await everything_that_can_run()
    lost.end()
    taker.end("a")
    await taker.mailboxes.drained()
    assert taker.begun == ["a"]


async def test_a_request_whose_channel_died_before_it_was_begun_is_not_begun(taker: Taker) -> None:
    lost = ChannelLife()
    taker.put("a", life=lost)
    lost.end()
    taker.mailboxes.forget_dead()
    taker.put("b")
    await everything_that_can_run()
    assert taker.begun == ["b"]
    await taker.mailboxes.stop()


async def test_a_request_that_is_delivered_again_while_it_still_runs_here_waits_for_its_own_end(taker: Taker) -> None:
    lost = ChannelLife()
    taker.put("a", "b", life=lost)
    await everything_that_can_run()
    lost.end()
    taker.mailboxes.forget_dead()
    taker.put("a", "b", life=ChannelLife())
    await everything_that_can_run()
    assert taker.begun == ["a"]
    taker.end("a", "b")
    await taker.mailboxes.drained()
    assert taker.taken == ["a", "a", "b"]


async def test_forgetting_with_nothing_here_does_nothing(taker: Taker) -> None:
    taker.mailboxes.forget_dead()
    assert len(taker.mailboxes) == 0
    async with asyncio.timeout(1):
        await taker.mailboxes.drained()
        await taker.mailboxes.stop()


async def test_draining_waits_for_everything_and_stopping_ends_everything(taker: Taker) -> None:
    taker.put("a", "b")
    taker.put("c", session="s2")
    draining = asyncio.create_task(taker.mailboxes.drained())
    await everything_that_can_run()
    taker.end("a", "c")
    await eventually(lambda: taker.begun == ["a", "c", "b"])
    assert not draining.done()
    await taker.mailboxes.stop()
    await draining
    assert taker.taken == ["a", "c"]
    assert len(taker.mailboxes) == 0


async def test_stopping_begins_nothing_of_what_waits(taker: Taker) -> None:
    taker.put("a", "b", "c")
    taker.put("d", "e", session="s2")
    await everything_that_can_run()
    await taker.mailboxes.stop()
    assert sorted(taker.begun) == ["a", "d"]


async def test_a_take_that_fails_once_is_tried_again_before_the_next_request(
    taker: Taker, logged: list[EventDict]
) -> None:
    taker.errors = {"a": [LookupError("odd")]}
    taker.put("a", "b")
    taker.end("a", "b")
    await taker.mailboxes.drained()
    assert taker.begun == ["a", "a", "b"]
    assert taker.taken == ["a", "b"]
    assert taker.buried == []
    assert any(event["log_level"] == "error" and event.get("exc_info") for event in logged)


async def test_a_take_that_keeps_failing_is_dead_lettered_and_those_behind_it_are_taken_in_order(taker: Taker) -> None:
    taker.errors = {"a": [LookupError("odd") for _ in range(100)]}
    taker.put("a", "b", "c")
    taker.put("d", session="s2")
    taker.end("b", "c", "d")
    await taker.mailboxes.drained()
    assert sorted(taker.taken) == ["b", "c", "d"]
    assert taker.begun.index("b") < taker.begun.index("c")
    ((delivery, refusal),) = taker.buried
    assert delivery.source == "teamturn.requests.0"
    assert refusal.code is ErrorCode.INTERNAL_ERROR
    assert "odd" not in refusal.message


async def test_a_take_that_ends_with_a_cancelled_error_of_its_own_loses_nothing_behind_it(taker: Taker) -> None:
    """Users' code can raise CancelledError although nobody cancelled its task: by awaiting a cancelled one."""
    taker.errors = {"a": [asyncio.CancelledError() for _ in range(100)]}
    taker.put("a", "b", "c")
    taker.end("b", "c")
    await taker.mailboxes.drained()
    assert taker.taken == ["b", "c"]


async def test_a_request_is_told_behind_which_others_of_its_session_it_came(taker: Taker) -> None:
    taker.put("r1", "r2")
    taker.put("r3", session="s2")
    await eventually(lambda: taker.begun == ["r1", "r3"])
    taker.end("r1")
    await eventually(lambda: taker.begun == ["r1", "r3", "r2"])
    taker.put("r4")
    assert taker.busy == [("r2", ["r1"]), ("r4", ["r2"])]
    taker.end("r2", "r3", "r4")
    await taker.mailboxes.drained()


async def test_the_same_request_again_is_not_behind_itself_nor_behind_what_is_settled(taker: Taker) -> None:
    taker.put("r1", "r1")
    assert taker.busy == []
    settled = a_request_delivery("r2", "s1")
    taker.mailboxes.put(settled)
    settled.settled = True
    taker.put("r3")
    assert taker.busy == [("r2", ["r1", "r1"]), ("r3", ["r1", "r1"])]
    taker.end("r1", "r2", "r3")
    await taker.mailboxes.drained()
