"""Passing messages on: copies with what they came with, in order, acknowledged after their confirm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from aio_pika import DeliveryMode, Message

from schemas.errors import ErrorCode
from schemas.requests import RunRequest
from tests.support.waiting import eventually
from tests.unit.examples import FakeMessage, a_delivery, everything_that_can_run
from worker.client.pending import message_of
from worker.errors import RequestRefused
from worker.intake import forwarding
from worker.intake.delivery import ChannelLife, Delivery
from worker.intake.forwarding import PASSED_ON, Forwarder, copy_of
from worker.intake.topology import Topology
from worker.replies.publisher import Publisher, Unroutable


class _Broker:
    """Confirms what is published, when it is told to; or says that no queue takes it."""

    def __init__(self) -> None:
        self.published: list[tuple[Message, str, str]] = []
        self.unroutable = 0
        self.fails_on: bytes | None = None
        self.doubted = 0
        self.answered: list[tuple[Delivery, RequestRefused]] = []
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.answers = asyncio.Event()
        self.answers.set()

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, mandatory: bool, wanted: Callable[[], bool]
    ) -> bool:
        assert mandatory
        if message.body == self.fails_on:
            raise ValueError("it does not fit into a frame")
        if self.unroutable:
            self.unroutable -= 1
            raise Unroutable(routing_key)
        if not wanted():
            return False
        self.published.append((message, exchange, routing_key))
        await self.confirms.wait()
        return True

    def doubt(self) -> None:
        self.doubted += 1

    async def answer(self, delivery: Delivery, refusal: RequestRefused) -> bool:
        self.answered.append((delivery, refusal))
        await self.answers.wait()
        return delivery.alive


@asynccontextmanager
async def _running(broker: _Broker) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(cast("Publisher", broker), Topology("teamturn", 4), broker.answer)
    task = asyncio.create_task(forwarder.run())
    try:
        yield forwarder
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


_NO_REQUEST = RequestRefused(ErrorCode.MALFORMED_REQUEST, "the body is not JSON")

_FULL = FakeMessage(
    body=b"\xff body",
    message_id="m1",
    correlation_id="c1",
    reply_to="amq.gen-1",
    headers={"traceparent": "00-1-2-01", "n": 5, "nested": {"a": [1]}},
    content_type="application/json",
    content_encoding="utf-8",
    timestamp=datetime(2030, 1, 31, tzinfo=UTC),
    type="run.request",
    app_id="chat",
)


def test_a_copy_keeps_body_properties_and_headers_and_is_persistent() -> None:
    copy = copy_of(a_delivery(_FULL), {"x-more": "1"})
    assert copy.body == b"\xff body"
    assert (copy.message_id, copy.correlation_id, copy.reply_to) == ("m1", "c1", "amq.gen-1")
    assert (copy.content_type, copy.content_encoding) == ("application/json", "utf-8")
    assert (copy.type, copy.app_id, copy.timestamp) == ("run.request", "chat", datetime(2030, 1, 31, tzinfo=UTC))
    assert copy.headers == {"traceparent": "00-1-2-01", "n": 5, "nested": {"a": [1]}, "x-more": "1"}
    assert copy.delivery_mode is DeliveryMode.PERSISTENT


def test_a_copy_leaves_out_what_would_have_it_routed_or_refused_differently() -> None:
    message = FakeMessage(headers={"CC": ["a"], "BCC": ["b"], "cc": 1}, user_id="guest", expiration=5.0, priority=9)
    copy = copy_of(a_delivery(message), {})
    assert copy.headers == {"cc": 1}
    assert copy.user_id is None
    assert not copy.expiration
    assert copy.properties.priority is None


def test_a_client_s_request_says_nothing_of_a_priority() -> None:
    """RabbitMQ 4.3 has messages of priority 0 overtaken by those without one."""
    request = RunRequest.model_validate({"run_id": "r", "team_id": "t", "input": "hi"})
    assert message_of(request).properties.priority is None


async def test_a_request_is_published_to_its_slot_and_then_acknowledged() -> None:
    broker, message = _Broker(), FakeMessage(body=b"x")
    broker.confirms.clear()
    async with _running(broker) as forwarder:
        forwarder.pass_on(a_delivery(message), "8d")
        await eventually(lambda: len(broker.published) == 1)
        assert message.acknowledged == 0, "not before its confirm"
        broker.confirms.set()
        await eventually(lambda: message.acknowledged == 1)
    ((copy, exchange, key),) = broker.published
    assert (copy.body, exchange, key) == (b"x", "teamturn.requests", "8d")
    assert PASSED_ON in copy.headers


async def test_what_is_no_request_is_published_to_the_dead_letters_with_headers_that_say_why() -> None:
    broker, message = _Broker(), FakeMessage(body=b"no JSON", headers={"traceparent": "t"}, message_id="m1")
    async with _running(broker) as forwarder:
        forwarder.bury(
            a_delivery(message, source="teamturn.requests.3"),
            _NO_REQUEST,
        )
        await eventually(lambda: message.acknowledged == 1)
    ((copy, exchange, key),) = broker.published
    assert (copy.body, exchange, key) == (b"no JSON", "", "teamturn.dead")
    assert copy.message_id == "m1"
    headers = dict(copy.headers)
    assert datetime.fromisoformat(str(headers.pop("x-teamturn-time"))).tzinfo is not None
    assert headers == {
        "traceparent": "t",
        "x-teamturn-code": "malformed_request",
        "x-teamturn-reason": "the body is not JSON",
        "x-teamturn-queue": "teamturn.requests.3",
    }


async def test_messages_are_passed_on_in_their_order_each_after_the_confirm_of_the_one_before() -> None:
    broker = _Broker()
    broker.confirms.clear()
    messages = [FakeMessage(body=str(number).encode()) for number in range(50)]
    async with _running(broker) as forwarder:
        for message in messages:
            forwarder.pass_on(a_delivery(message), "00")
        await eventually(lambda: len(broker.published) == 1)
        await everything_that_can_run()
        assert len(broker.published) == 1
        broker.confirms.set()
        await eventually(lambda: messages[-1].acknowledged == 1)
    assert [copy.body for copy, _, _ in broker.published] == [message.body for message in messages]


async def test_a_message_whose_channel_died_is_left_to_who_has_it_now_and_the_next_is_passed_on() -> None:
    broker, dead, alive, life = _Broker(), FakeMessage(body=b"dead"), FakeMessage(body=b"alive"), ChannelLife()
    async with _running(broker) as forwarder:
        forwarder.pass_on(a_delivery(dead, life=life), "00")
        forwarder.pass_on(a_delivery(alive), "00")
        life.end()
        await eventually(lambda: alive.acknowledged == 1)
    assert dead.acknowledged == 0
    assert [copy.body for copy, _, _ in broker.published] == [b"alive"]


async def test_where_no_queue_takes_it_the_queues_are_declared_again_and_nothing_overtakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "_UNROUTABLE_SECONDS", 0.0)
    broker = _Broker()
    broker.unroutable = 3
    first, second = FakeMessage(body=b"1"), FakeMessage(body=b"2")
    async with _running(broker) as forwarder:
        for message in (first, second):
            forwarder.pass_on(a_delivery(message), "00")
        await eventually(lambda: second.acknowledged == 1)
    assert broker.doubted == 3
    assert [copy.body for copy, _, _ in broker.published] == [b"1", b"2"]


async def test_a_copy_that_can_not_be_sent_stays_unacknowledged_and_does_not_hold_up_the_next() -> None:
    broker, odd, next_one = _Broker(), FakeMessage(body=b"odd"), FakeMessage(body=b"next")
    broker.fails_on = b"odd"
    async with _running(broker) as forwarder:
        for message in (odd, next_one):
            forwarder.pass_on(a_delivery(message), "00")
        await eventually(lambda: next_one.acknowledged == 1)
    assert odd.acknowledged == 0


@pytest.mark.parametrize("headers", [{"raw": b"\x00"}, {"much": "x" * 70_000}, {"odd": object()}])
def test_a_header_that_can_not_be_sent_again_is_left_out_and_the_others_are_kept(headers: dict[str, Any]) -> None:
    copy = copy_of(a_delivery(FakeMessage(headers=headers | {"traceparent": "t"})), {"x-more": "1"})
    assert copy.headers == {"traceparent": "t", "x-more": "1"}


async def test_copies_are_published_while_an_answer_takes_its_time_and_the_answered_is_acknowledged_after_it() -> None:
    broker, buried, passed_on = _Broker(), FakeMessage(body=b"buried"), FakeMessage(body=b"passed on")
    broker.answers.clear()
    async with _running(broker) as forwarder:
        forwarder.bury(a_delivery(buried), _NO_REQUEST)
        forwarder.pass_on(a_delivery(passed_on), "00")
        await eventually(lambda: passed_on.acknowledged == 1)
        assert buried.acknowledged == 0, "not before its answer"
        broker.answers.set()
        await eventually(lambda: buried.acknowledged == 1)


async def test_with_all_places_for_answers_taken_the_next_copy_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_MOST_ANSWERS", 2)
    broker = _Broker()
    broker.answers.clear()
    messages = [FakeMessage(body=str(number).encode()) for number in range(9)]
    async with _running(broker) as forwarder:
        for message in messages:
            forwarder.bury(a_delivery(message), _NO_REQUEST)
        await everything_that_can_run()
        assert len(broker.answered) == 2
        assert len(broker.published) == 3
        broker.answers.set()
        await eventually(lambda: all(message.acknowledged == 1 for message in messages))


async def test_an_answer_that_fails_costs_no_other_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_MOST_ANSWERS", 1)
    broker, odd, next_one = _Broker(), FakeMessage(body=b"odd"), FakeMessage(body=b"next")
    answer = broker.answer

    async def failing(delivery: Delivery, refusal: RequestRefused) -> bool:
        if delivery.message.body == b"odd":
            raise ValueError("it does not fit into a frame")
        return await answer(delivery, refusal)

    monkeypatch.setattr(broker, "answer", failing)
    async with _running(broker) as forwarder:
        for message in (odd, next_one):
            forwarder.bury(a_delivery(message), _NO_REQUEST)
        await eventually(lambda: next_one.acknowledged == 1)
    assert odd.acknowledged == 0


async def test_told_to_stop_it_gives_up_answers_that_are_under_way() -> None:
    broker, buried = _Broker(), FakeMessage()
    broker.answers.clear()
    async with _running(broker) as forwarder:
        forwarder.bury(a_delivery(buried), _NO_REQUEST)
        await eventually(lambda: len(broker.answered) == 1)
    assert buried.acknowledged == 0


async def test_told_to_stop_while_it_publishes_it_stops_also_when_the_client_swallows_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio.wait_for of Python 3.11, which aiormq uses, drops a cancellation that comes together with the answer."""
    broker = _Broker()
    publish = broker.publish

    async def swallowing(message: Message, **options: Any) -> bool:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await publish(message, **options)

    monkeypatch.setattr(broker, "publish", swallowing)
    broker.answers.clear()
    forwarder = Forwarder(cast("Publisher", broker), Topology("teamturn", 4), broker.answer)
    running = asyncio.create_task(forwarder.run())
    forwarder.bury(a_delivery(), _NO_REQUEST)
    await everything_that_can_run()
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done, "it still runs"
