"""The intake: each delivery goes into a mailbox, on to its partition, or to the dead letters."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schemas.errors import ErrorCode
from tests.unit.examples import FakeMessage, a_body, a_delivery
from worker.errors import RequestRefused
from worker.intake import intake
from worker.intake.delivery import Delivery, RequestDelivery
from worker.intake.forwarding import PASSED_ON, Forwarder
from worker.intake.intake import Intake
from worker.intake.mailbox import Mailboxes
from worker.intake.slots import partition_of, slot_of
from worker.intake.topology import Topology

_PARTITIONS = 4
_HOME = partition_of(slot_of("s1"), _PARTITIONS)
_AWAY = (_HOME + 1) % _PARTITIONS


class _Sorted:
    """An intake, and what it did with each delivery."""

    def __init__(self) -> None:
        self.put: list[RequestDelivery] = []
        self.passed_on: list[tuple[Delivery, str]] = []
        self.buried: list[tuple[Delivery, RequestRefused]] = []

        class TheirMailboxes:
            put = staticmethod(self.put.append)

        class TheirForwarder:
            pass_on = staticmethod(lambda delivery, slot: self.passed_on.append((delivery, slot)))
            bury = staticmethod(lambda delivery, refusal: self.buried.append((delivery, refusal)))

        self.intake = Intake(
            Topology("teamturn", _PARTITIONS),
            cast("Mailboxes", TheirMailboxes),
            cast("Forwarder", TheirForwarder),
            largest_bytes=1_000,
        )

    def receive(self, queue: str, body: bytes | None = None, **properties: Any) -> str:
        """Have the intake sort a delivery; say where it went."""
        message = FakeMessage(body=a_body() if body is None else body, **properties)
        self.intake.received(a_delivery(message, source=f"teamturn.{queue}"))
        (where,) = [name for name in ("put", "passed_on", "buried") if getattr(self, name)]
        return where


def test_a_request_in_its_own_partition_goes_to_its_session_s_mailbox() -> None:
    sorted_ = _Sorted()
    assert sorted_.receive(f"requests.{_HOME}") == "put"
    assert sorted_.put[0].request.session_id == "s1"


@pytest.mark.parametrize("queue", ["unrouted", f"requests.{_AWAY}"])
def test_a_request_found_elsewhere_is_passed_on_to_its_slot(queue: str) -> None:
    sorted_ = _Sorted()
    assert sorted_.receive(queue) == "passed_on"
    assert sorted_.passed_on[0][1] == slot_of("s1")


def test_a_request_that_was_passed_on_and_arrived_at_home_is_taken() -> None:
    assert _Sorted().receive(f"requests.{_HOME}", headers={PASSED_ON: "1"}) == "put"


@pytest.mark.parametrize("queue", ["unrouted", f"requests.{_AWAY}"])
def test_a_request_that_was_passed_on_and_arrived_elsewhere_is_not_passed_on_for_ever(queue: str) -> None:
    sorted_ = _Sorted()
    assert sorted_.receive(queue, headers={PASSED_ON: "1"}) == "buried"
    assert sorted_.buried[0][1].code is ErrorCode.MISROUTED
    assert queue in sorted_.buried[0][1].message


@pytest.mark.parametrize("queue", ["unrouted", f"requests.{_HOME}", f"requests.{_AWAY}"])
@pytest.mark.parametrize("properties", [{"expiration": 60.0}, {"priority": 5}])
def test_a_request_with_a_forbidden_property_is_answered_where_it_is_seen(
    queue: str, properties: dict[str, Any]
) -> None:
    assert _Sorted().receive(queue, **properties) == "put"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"no JSON", ErrorCode.MALFORMED_REQUEST),
        (a_body(surprise=1), ErrorCode.INVALID_REQUEST),
        (a_body(run_id=...), ErrorCode.MISSING_RUN_ID),
        (a_body(input="x" * 1_000), ErrorCode.REQUEST_TOO_LARGE),
    ],
)
@pytest.mark.parametrize("queue", ["unrouted", f"requests.{_AWAY}"])
def test_what_is_no_request_goes_to_the_dead_letters_with_its_code(queue: str, body: bytes, code: ErrorCode) -> None:
    sorted_ = _Sorted()
    assert sorted_.receive(queue, body) == "buried"
    assert sorted_.buried[0][1].code is code


def test_without_a_session_id_the_run_id_says_the_partition() -> None:
    home = partition_of(slot_of("m-1"), _PARTITIONS)
    sorted_ = _Sorted()
    assert sorted_.receive(f"requests.{home}", a_body(run_id=..., session_id=...), message_id="m-1") == "put"
    assert sorted_.put[0].request.session_id == "m-1"


def test_a_message_that_fails_the_reader_in_an_unforeseen_way_is_dead_lettered_and_not_the_last_one_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise LookupError("odd")

    sorted_ = _Sorted()
    with monkeypatch.context() as patched:
        patched.setattr(intake, "read_request", fails)
        assert sorted_.receive(f"requests.{_HOME}") == "buried"
    assert sorted_.buried[0][1].code is ErrorCode.INTERNAL_ERROR
    assert "odd" not in sorted_.buried[0][1].message
