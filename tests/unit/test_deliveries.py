"""A delivery: one message on the one channel on which it can be acknowledged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from tests.unit.examples import FakeMessage, a_delivery
from worker.intake.delivery import ChannelLife


async def test_a_delivery_of_a_living_channel_is_acknowledged() -> None:
    message = FakeMessage()
    delivery = a_delivery(message)
    await delivery.ack()
    assert delivery.alive
    assert message.acknowledged == 1


async def test_a_delivery_of_a_dead_channel_is_left_to_whom_it_is_given_next() -> None:
    message, life = FakeMessage(), ChannelLife()
    delivery = a_delivery(message, life=life)
    life.end()
    await delivery.ack()
    assert not delivery.alive
    assert message.acknowledged == 0


@pytest.mark.parametrize("error", [ChannelInvalidStateError("closed"), ConnectionError("reset"), TimeoutError()])
async def test_an_acknowledgement_that_fails_ends_the_channel_s_life(error: Exception) -> None:
    life = ChannelLife()
    await a_delivery(FakeMessage(ack_error=error), life=life).ack()
    assert not life.alive


@pytest.mark.parametrize(
    ("properties", "forbidden"),
    [
        ({}, None),
        ({"priority": 0}, None),
        ({"priority": None}, None),
        ({"priority": 1}, "priority"),
        ({"priority": 255}, "priority"),
        ({"expiration": 60.0}, "expiration"),
        ({"expiration": 0}, "expiration"),
        ({"expiration": 0, "priority": 9}, "expiration"),
    ],
)
def test_an_expiration_or_a_priority_above_0_is_forbidden(properties: dict[str, Any], forbidden: str | None) -> None:
    assert a_delivery(FakeMessage(**properties)).forbidden_property() == forbidden


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "00-1-2-01"}])
def test_headers_are_never_none_and_a_copy(headers: dict[str, Any] | None) -> None:
    delivery = a_delivery(FakeMessage(headers=headers))
    assert delivery.headers == (headers or {})
    delivery.headers["mine"] = 1
    assert "mine" not in delivery.headers


def test_it_was_queued_by_the_end_of_its_timestamp_s_second_and_never_after_it_came() -> None:
    delivery = a_delivery(FakeMessage(timestamp=datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)))
    assert delivery.queued_since == 1_000_000_001
    future = a_delivery(FakeMessage(timestamp=datetime(2999, 1, 1, tzinfo=UTC)))
    assert future.queued_since == future.received
    without = a_delivery(FakeMessage())
    assert without.queued_since == without.received


@pytest.mark.parametrize(("flag", "redelivered"), [(True, True), (False, False), (None, False)])
def test_somebody_had_it_before_if_the_broker_says_so(flag: bool | None, *, redelivered: bool) -> None:  # noqa: FBT001
    assert a_delivery(FakeMessage(redelivered=flag)).redelivered is redelivered
