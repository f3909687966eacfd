"""Exchanges, queues, arguments and bindings, as the contract names them."""

from __future__ import annotations

from collections import Counter

import pytest
from aio_pika.abc import ExchangeType
from hypothesis import given
from hypothesis import strategies as st

from worker.intake.slots import SLOTS, partition_of, slot_of
from worker.intake.topology import Queue, Topology

_PARTITIONS = pytest.mark.parametrize("partitions", [1, 2, 16, 100, 256])


def _queues(partitions: int = 16, prefix: str = "teamturn") -> dict[str, Queue]:
    return {queue.name: queue for queue in Topology(prefix, partitions).queues()}


def test_the_exchanges_are_those_of_the_contract() -> None:
    exchanges = {
        exchange.name: (exchange.type, exchange.arguments) for exchange in Topology("teamturn", 16).exchanges()
    }
    assert exchanges == {
        "teamturn.requests": (ExchangeType.DIRECT, {"alternate-exchange": "teamturn.unrouted"}),
        "teamturn.unrouted": (ExchangeType.FANOUT, {}),
        "teamturn.results": (ExchangeType.TOPIC, {}),
        "teamturn.events": (ExchangeType.TOPIC, {}),
        "teamturn.control": (ExchangeType.FANOUT, {}),
    }


@_PARTITIONS
def test_the_queues_are_those_of_the_contract(partitions: int) -> None:
    names = {queue.name for queue in Topology("p", partitions).queues()}
    assert names == {
        *(f"p.requests.{number}" for number in range(partitions)),
        *("p.unrouted", "p.results", "p.control", "p.dead"),
    }


def test_every_name_begins_with_the_prefix() -> None:
    topology = Topology("batch.eu", 3)
    names = [*(one.name for one in topology.exchanges()), *(one.name for one in topology.queues())]
    assert all(name.startswith("batch.eu.") for name in names)


@_PARTITIONS
def test_a_request_queue_has_one_active_consumer_a_high_delivery_limit_and_dead_letters(partitions: int) -> None:
    queues = _queues(partitions)
    for number in range(partitions):
        assert queues[f"teamturn.requests.{number}"].arguments == {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": 1_000_000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "teamturn.dead",
        }


@_PARTITIONS
def test_each_of_the_256_slots_is_bound_once_to_queue_s_mod_partitions(partitions: int) -> None:
    bound = {
        key: number
        for number in range(partitions)
        for exchange, key in _queues(partitions)[f"teamturn.requests.{number}"].bindings
        if exchange == "teamturn.requests"
    }
    assert bound == {f"{slot:02x}": slot % partitions for slot in range(256)}
    every = [key for queue in _queues(partitions).values() for source, key in queue.bindings if ".requests" in source]
    assert Counter(every) == Counter(SLOTS)


@pytest.mark.parametrize("name", ["unrouted", "results", "control", "dead"])
def test_the_other_queues_are_quorum_queues_with_a_delivery_limit_that_is_never_reached(name: str) -> None:
    arguments = _queues()[f"teamturn.{name}"].arguments
    assert arguments["x-queue-type"] == "quorum"
    assert arguments["x-delivery-limit"] == 1_000_000


def test_requests_without_a_slot_are_passed_on_by_one_active_consumer() -> None:
    unrouted = _queues()["teamturn.unrouted"]
    assert unrouted.arguments["x-single-active-consumer"] is True
    assert [source for source, _ in unrouted.bindings] == ["teamturn.unrouted"]


def test_results_get_every_reply_and_control_every_cancel_and_dead_only_what_is_sent_there() -> None:
    queues = _queues()
    assert queues["teamturn.results"].bindings == (("teamturn.results", "#"),)
    assert [source for source, _ in queues["teamturn.control"].bindings] == ["teamturn.control"]
    assert queues["teamturn.dead"].bindings == ()


def test_nothing_of_one_prefix_names_another() -> None:
    chat, batch = _queues(prefix="chat"), _queues(prefix="batch")
    assert not chat.keys() & batch.keys()
    assert {source for queue in chat.values() for source, _ in queue.bindings} == {
        *("chat.requests", "chat.unrouted", "chat.results", "chat.control")
    }


@pytest.mark.parametrize(
    ("session_id", "slot"),
    [
        ("", "d4"),
        ("abc", "90"),
        ("message digest", "f9"),
        ("s1", "8d"),
        ("é", "66"),
        ("😀 session/1", "70"),
        ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "16"),
    ],
)
def test_a_slot_is_the_first_two_hex_digits_of_the_md5_of_the_session_id_in_utf8(session_id: str, slot: str) -> None:
    assert slot_of(session_id) == slot


@pytest.mark.parametrize(
    ("slot", "partitions", "partition"),
    [
        *[("00", 16, 0), ("0f", 16, 15), ("10", 16, 0), ("d4", 16, 4), ("ff", 16, 15)],
        *[("00", 1, 0), ("ff", 1, 0), ("ff", 256, 255), ("80", 256, 128), ("ff", 100, 55), ("64", 100, 0)],
    ],
)
def test_a_slot_is_served_by_partition_s_mod_partitions(slot: str, partitions: int, partition: int) -> None:
    assert partition_of(slot, partitions) == partition


@given(st.text(), st.integers(1, 256))
def test_any_session_has_a_slot_and_a_partition(session_id: str, partitions: int) -> None:
    assert slot_of(session_id) in SLOTS
    assert 0 <= partition_of(slot_of(session_id), partitions) < partitions
