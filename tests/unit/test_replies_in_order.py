"""Replies beside the turns: a session's in their order, each acknowledged when it is confirmed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from structlog.typing import EventDict

from schemas.requests import RunRequest
from tests.unit.examples import FakeMessage, a_delivery, a_request, everything_that_can_run
from worker.intake.delivery import ChannelLife, Delivery, RequestDelivery
from worker.replies.in_order import RepliesInOrder
from worker.replies.replies import ReplyPublisher


class Publishing:
    """A reply publisher whose broker confirms what the test lets through."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.published: list[tuple[str, bytes]] = []
        self.after: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self._held: dict[str, asyncio.Event] = {}
        self.replies = RepliesInOrder(cast("ReplyPublisher", self))

    async def publish(self, body: bytes, request: RunRequest, delivery: Delivery) -> bool:
        self.begun.append(request.run_id)
        if request.run_id in self._held:
            await self._held[request.run_id].wait()
        if request.run_id in self.errors:
            raise self.errors[request.run_id]
        if not delivery.alive:
            return False
        self.published.append((request.run_id, body))
        return True

    def hold(self, *run_ids: str) -> None:
        for run_id in run_ids:
            self._held[run_id] = asyncio.Event()

    async def let(self, *run_ids: str) -> None:
        for run_id in run_ids:
            self._held[run_id].set()
        await everything_that_can_run()

    def send(self, *run_ids: str, session: str = "s1", life: ChannelLife | None = None) -> list[FakeMessage]:
        messages = [FakeMessage() for _ in run_ids]
        for run_id, message in zip(run_ids, messages, strict=True):
            request = a_request(run_id=run_id, session_id=session)
            received = RequestDelivery(a_delivery(message, life=life), request)
            self.replies.send(run_id.encode(), received, then=lambda run_id=run_id: self.after.append(run_id))  # type: ignore[misc]
        return messages

    @property
    def run_ids(self) -> list[str]:
        return [run_id for run_id, _ in self.published]


@pytest.fixture
def publishing() -> Publishing:
    return Publishing()


async def test_a_reply_is_published_as_it_is_stored_then_acknowledged_then_what_is_after_it_begins(
    publishing: Publishing,
) -> None:
    (message,) = publishing.send("a")
    await publishing.replies.drained()
    assert publishing.published == [("a", b"a")]
    assert message.acknowledged == 1
    assert publishing.after == ["a"]


async def test_a_reply_that_is_held_up_holds_up_those_of_its_session_behind_it(publishing: Publishing) -> None:
    publishing.hold("a")
    publishing.send("a", "b", "c")
    await everything_that_can_run()
    assert publishing.begun == ["a"]
    await publishing.let("a")
    assert publishing.run_ids == ["a", "b", "c"]


async def test_and_those_of_no_other_session(publishing: Publishing) -> None:
    publishing.hold("a")
    publishing.send("a")
    publishing.send("b", session="s2")
    await everything_that_can_run()
    assert publishing.run_ids == ["b"]
    await publishing.let("a")


async def test_sending_waits_for_nothing(publishing: Publishing) -> None:
    publishing.hold("a")
    publishing.send("a", "b")
    assert publishing.begun == []
    await publishing.replies.stop()


async def test_nothing_is_acknowledged_before_its_reply_is_confirmed(publishing: Publishing) -> None:
    publishing.hold("a")
    (message,) = publishing.send("a")
    await everything_that_can_run()
    assert (message.acknowledged, publishing.after) == (0, [])
    await publishing.let("a")
    assert message.acknowledged == 1


async def test_the_reply_to_a_delivery_that_died_is_left_to_who_has_the_request_now(publishing: Publishing) -> None:
    life = ChannelLife()
    publishing.hold("a")
    messages = publishing.send("a", "b", life=life)
    await everything_that_can_run()
    life.end()
    await publishing.let("a")
    assert publishing.published == []
    assert [message.acknowledged for message in messages] == [0, 0]


async def test_one_delivered_again_meanwhile_is_answered_behind_the_reply_that_died(publishing: Publishing) -> None:
    lost = ChannelLife()
    publishing.hold("a")
    publishing.send("a", life=lost)
    await everything_that_can_run()
    lost.end()
    (again,) = publishing.send("a")
    await everything_that_can_run()
    assert publishing.begun == ["a"]
    await publishing.let("a")
    assert publishing.run_ids == ["a"]
    assert again.acknowledged == 1


async def test_a_reply_that_fails_unforeseen_is_not_acknowledged_and_its_requests_are_delivered_again(
    publishing: Publishing, logged: list[EventDict]
) -> None:
    life = ChannelLife()
    publishing.errors["a"] = LookupError("odd")
    first, second = publishing.send("a", "b", life=life)
    await publishing.replies.drained()
    assert (first.acknowledged, second.acknowledged) == (0, 0)
    assert not life.alive, "its channel is closed, so that the broker takes all of it back"
    assert any(event["log_level"] == "error" and event.get("exc_info") for event in logged)


async def test_after_one_that_failed_the_session_s_next_delivery_is_answered(publishing: Publishing) -> None:
    publishing.errors["a"] = LookupError("odd")
    publishing.send("a", life=ChannelLife())
    (message,) = publishing.send("b", life=ChannelLife())
    await publishing.replies.drained()
    assert publishing.run_ids == ["b"]
    assert message.acknowledged == 1


async def test_drained_waits_for_all_of_them(publishing: Publishing) -> None:
    publishing.hold("a", "b")
    publishing.send("a")
    publishing.send("b", session="s2")
    draining = asyncio.create_task(publishing.replies.drained())
    await publishing.let("a")
    assert not draining.done()
    await publishing.let("b")
    async with asyncio.timeout(1):
        await draining


async def test_drained_and_stopped_with_nothing_under_way_are_so_at_once(publishing: Publishing) -> None:
    async with asyncio.timeout(1):
        await publishing.replies.drained()
        await publishing.replies.stop()


async def test_stopping_gives_up_what_is_under_way_and_acknowledges_none_of_it(publishing: Publishing) -> None:
    publishing.hold("a")
    messages = publishing.send("a", "b")
    await everything_that_can_run()
    async with asyncio.timeout(1):
        await publishing.replies.stop()
    assert publishing.published == []
    assert publishing.after == []
    assert [message.acknowledged for message in messages] == [0, 0]


async def test_nothing_is_kept_of_sessions_that_are_answered(publishing: Publishing) -> None:
    for number in range(50):
        publishing.send("a", "b", session=f"s{number}")
    await publishing.replies.drained()
    await everything_that_can_run()
    assert publishing.replies._last == {}
    assert publishing.replies._under_way == set()
