"""What can be told of a dead letter, whatever was sent; and which are meant by a selection."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from aio_pika.abc import AbstractIncomingMessage

from schemas.dead_letters import DeadLetter
from schemas.ids import SessionType
from tests.unit.examples import FakeMessage, a_body
from worker.operations.dead_letters import Selection, content_of, dead_letter, fingerprint_of, headers_as_sent

BURIED = {
    "x-teamturn-code": "misrouted",
    "x-teamturn-reason": "the bindings are wrong",
    "x-teamturn-queue": "teamturn.requests.0",
    "x-teamturn-time": "2030-01-31T12:00:00+00:00",
}
EXPIRED = {"x-death": [{"reason": "expired", "queue": "teamturn.requests.1", "time": datetime(2030, 1, 31, 12)}]}  # noqa: DTZ001 - as pamqp gives it
ODD: list[Any] = [None, 1, True, 1.5, Decimal(1), b"\xff", [], [1], {}, [[]], "x" * 10_000]
NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def message(body: bytes = b"{", **properties: Any) -> AbstractIncomingMessage:
    fake = FakeMessage(body, **properties)
    fake.delivery_mode = 2  # type: ignore[attr-defined]
    return cast("AbstractIncomingMessage", fake)


def letter(body: bytes = b"{", **properties: Any) -> DeadLetter:
    return dead_letter(message(body, **properties))


def test_a_buried_request_says_why_and_whose_it_is() -> None:
    found = letter(a_body(), headers=BURIED)
    assert (found.code, found.reason, found.queue, found.time) == (
        *("misrouted", "the bindings are wrong", "teamturn.requests.0", NOON),
    )
    assert (found.id, found.run_id, found.session_id, found.target_type, found.target_id) == (
        *("r1", "r1", "s1", SessionType.TEAM, "t1"),
    )


def test_poison_says_what_it_cost() -> None:
    found = letter(headers={"x-teamturn-attempts": 3, "x-teamturn-steps": 4, "x-teamturn-tokens": 5})
    assert (found.attempts, found.steps, found.tokens) == (3, 4, 5)


def test_what_rabbitmq_buried_has_its_reason() -> None:
    found = letter(a_body(), headers=EXPIRED)
    assert (found.code, found.queue, found.time) == ("expired", "teamturn.requests.1", NOON)


def test_what_a_worker_says_goes_before_what_rabbitmq_said() -> None:
    assert letter(headers=EXPIRED | BURIED).code == "misrouted"


def test_what_is_no_request_is_called_by_its_body_s_digest() -> None:
    one, same, another = letter(b"one"), letter(b"one"), letter(b"another")
    assert one.id == same.id != another.id
    assert (len(one.id), one.run_id) == (12, None)


def test_the_message_id_is_the_run_id_of_a_body_without_one() -> None:
    assert letter(b"{", message_id="m1").id == "m1"


@pytest.mark.parametrize(
    "headers",
    [dict.fromkeys(BURIED, odd) for odd in ODD]
    + [{"x-death": death} for death in [*ODD, [{"reason": 1, "queue": [], "time": "never"}]]],
)
def test_headers_of_any_kind_are_no_trouble(headers: dict[str, Any]) -> None:
    letter(headers=headers).model_dump_json()


def test_all_of_a_message_is_told() -> None:
    found = content_of(message(b"\xff", headers={"k": [b"\xfe", {"deep": Decimal("1.5")}]}, correlation_id="c1"))
    assert (found.body, found.body_encoding) == ("/w==", "base64")
    assert found.headers == {"k": ["\ufffd", {"deep": "1.5"}]}
    assert found.properties == {"content_type": "application/json", "delivery_mode": 2, "correlation_id": "c1"}


def test_what_a_burial_added_is_not_what_was_sent() -> None:
    burial = {"x-first-death-reason": "expired", "x-delivery-count": 1, "x-teamturn-passed-on": "1"}
    assert headers_as_sent(message(headers={"traceparent": "t"} | BURIED | EXPIRED | burial)) == {"traceparent": "t"}


def test_a_message_id_that_was_made_up_for_the_copy_is_none() -> None:
    found = letter(b"{", message_id="m1", headers={"x-teamturn-without-message-id": "1"})
    assert (found.run_id, len(found.id)) == (None, 12)


def test_a_message_is_known_again_whatever_rabbitmq_counted() -> None:
    looks = [message(headers={"k": "v"} | count) for count in ({}, {"x-delivery-count": 1}, {"x-delivery-count": 2})]
    assert len({fingerprint_of(one) for one in looks}) == 1


def test_copies_are_alike_and_what_was_sent_otherwise_is_not() -> None:
    same = [message(b"one", headers={"a": 1, "b": 2}), message(b"one", headers={"b": 2, "a": 1})]
    others = [message(b"one"), message(b"two", headers={"a": 1, "b": 2}), message(b"one", message_id="m")]
    assert len({fingerprint_of(one) for one in same}) == 1
    assert len({fingerprint_of(one) for one in [*same, *others]}) == 4


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), True),
        (Selection(ids=frozenset({"r1", "r2"})), True),
        (Selection(ids=frozenset({"r2"})), False),
        (Selection(code="misrouted", session_id="s1", run_id="r1"), True),
        (Selection(code="expired"), False),
        (Selection(session_id="s2"), False),
        (Selection(run_id="r2"), False),
        (Selection(target_type=SessionType.TEAM, target_id="t1"), True),
        (Selection(target_type=SessionType.AGENT, target_id="t1"), False),
        (Selection(since=NOON), True),
        (Selection(since=NOON.replace(hour=13)), False),
    ],
)
def test_a_selection_means_what_agrees_with_all_of_it(selection: Selection, *, meant: bool) -> None:
    assert (letter(a_body(), headers=BURIED) in selection) is meant


def test_what_does_not_say_when_it_was_buried_is_not_since_any_time() -> None:
    assert letter(a_body()) not in Selection(since=NOON)


@pytest.mark.parametrize(("user_id", "meant"), [("ada", True), ("bob", False)])
def test_a_user_s_dead_letters_are_those_whose_body_names_the_user(user_id: str, *, meant: bool) -> None:
    assert (letter(a_body(user_id="ada")) in Selection(user_id=user_id)) is meant
    assert letter(b"not JSON, and nobody's") not in Selection(user_id=user_id)
