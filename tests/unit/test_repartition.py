"""Changing the partitions: which queue a message goes to, what its copy has, and who may start meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader
from pydantic import SecretStr

from worker.errors import StartupError
from worker.fleet.agreement import Agreement, Change, Phase
from worker.intake.slots import partition_of, slot_of
from worker.intake.topology import Topology
from worker.operations.moving import properties_of
from worker.operations.repartition import home_in
from worker.settings import Settings

_FIVE = Topology("p", 5)


def _message(body: Any, **properties: Any) -> DeliveredMessage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    header = ContentHeader(properties=spec.Basic.Properties(**properties), body_size=len(raw))
    return DeliveredMessage(delivery=spec.Basic.Deliver(), header=header, body=raw, channel=None)  # type: ignore[arg-type]


def _queue_of(session_id: str) -> str:
    return _FIVE.partition(partition_of(slot_of(session_id), 5))


@pytest.mark.parametrize(
    ("body", "properties", "session_id"),
    [
        ({"session_id": "s-7", "run_id": "r"}, {}, "s-7"),
        ({"session_id": "s-7"}, {}, "s-7"),
        ({"run_id": "r-3"}, {"message_id": "m-1"}, "r-3"),
        ({"input": "hello"}, {"message_id": "m-1"}, "m-1"),
        ({"session_id": "s-7", "unknown": 1, "input": "x" * 2_000_000}, {}, "s-7"),
    ],
)
def test_a_message_goes_to_the_partition_of_its_session(body: Any, properties: Any, session_id: str) -> None:
    assert home_in(_FIVE)(_message(body, **properties)) == _queue_of(session_id)


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[1]", {}, {"session_id": 5, "run_id": 6}, b"[" * 100_000, {"session_id": ""}]
)
def test_what_has_no_session_goes_to_the_first_partition(body: Any) -> None:
    assert home_in(_FIVE)(_message(body)) == "p.requests.0"


def test_an_id_that_the_client_made_up_on_the_way_is_not_the_session() -> None:
    moved = _message({}, message_id="made-up", headers={"x-teamturn-without-message-id": "1"})
    assert home_in(_FIVE)(moved) == "p.requests.0"


def test_a_copy_has_every_property_but_those_that_would_have_it_routed_or_refused() -> None:
    kept = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "priority": 5,
        "correlation_id": "c",
        "reply_to": "amq.gen-1",
        "expiration": "1000",
        "message_id": "m",
        "message_type": "run.request",
        "app_id": "chat",
    }
    headers = {"traceparent": "t", "CC": ["x"], "x-delivery-count": 3, "x-acquired-count": 4}
    copy = properties_of(_message(b"", **kept, user_id="guest", headers=headers))
    assert {name: getattr(copy, name) for name in kept} == kept
    assert (copy.user_id, copy.headers, copy.delivery_mode) == (None, {"traceparent": "t"}, 2)


def test_a_copy_says_that_its_original_had_no_message_id() -> None:
    assert properties_of(_message(b"")).headers == {"x-teamturn-without-message-id": "1"}


def _settings(partitions: int, prefetch: int) -> Settings:
    return Settings(partitions=partitions, prefetch=prefetch, amqp_url=SecretStr("amqp://localhost/"))


@pytest.mark.parametrize(
    ("agreement", "says"),
    [
        (Agreement(5, 128), "TEAMTURN_PARTITIONS is 4 here and 5"),
        (Agreement(4, 64), "TEAMTURN_PREFETCH is 128 here and 64"),
        (Agreement(4, 128, Change(8, 128, Phase.GATHERING)), "from 4 to 8, .* --partitions 8"),
        (Agreement(8, 128, Change(4, 128, Phase.SPREADING)), "from 8 to 4, .* --partitions 4"),
    ],
)
def test_a_worker_starts_with_the_fleet_s_own_settings_alone_and_never_during_a_change(
    agreement: Agreement, says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        agreement.require(_settings(4, 128))


def test_a_worker_with_the_fleet_s_settings_starts() -> None:
    Agreement(4, 128).require(_settings(4, 128))
