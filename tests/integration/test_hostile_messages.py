"""What strangers send: none of it stops the worker, and the next request goes on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import encode

from tests.integration.test_turn import echo
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.settings import Settings


def _timestamp(_: object) -> bytes:
    return struct.pack(">Q", 2**63)


def _not_utf8(_: object) -> bytes:
    return b"\xff" + b"\xfe" * 255


def _deep_table(_: object) -> bytes:
    table = b""
    for _level in range(5_000):
        table = b"\x01kF" + struct.pack(">I", len(table)) + table
    return struct.pack(">I", len(table)) + table


@pytest.mark.parametrize(
    ("kind", "encoded", "properties"),
    [
        ("timestamp", _timestamp, {"timestamp": datetime.now(UTC)}),
        ("shortstr", _not_utf8, {"message_id": "x", "correlation_id": "x"}),
        ("table", _deep_table, {"headers": {"k": {}}}),
    ],
)
async def test_properties_that_cannot_be_decoded_do_not_cost_the_connection(
    settings: Settings, broker: TestBroker, kind: str, encoded: Callable[[object], bytes], properties: dict[str, Any]
) -> None:
    async with worker_of(settings, echo):
        for run_id, routing_key in (("direct", None), ("roundabout", "elsewhere")):
            body = {"run_id": run_id, "session_id": "s1", "team_id": "echo", "input": "hi"}
            with pytest.MonkeyPatch.context() as patched:
                original = encode.METHODS[kind]
                # Only the properties: exchange and routing key must stay what they are.
                patched.setitem(
                    encode.METHODS,
                    kind,
                    lambda value, original=original: (
                        encoded(value) if kind != "shortstr" or value == "x" else original(value)
                    ),
                )
                await broker.publish(body, routing_key=routing_key, **properties)
        after = await broker.ask("s1", "next")
        assert (await broker.reply(after))["status"] == "COMPLETED"
        await eventually(lambda: len(broker.replies) == 3)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"not json", "malformed_request"),
        (b"\xff\xfe", "malformed_request"),
        (b"[" * 5_000 + b"]" * 5_000, "malformed_request"),
        (b'{"run_id": "r", "team_id": "echo", "input": "hi", "session_state": {"n": 1e400}}', "malformed_request"),
        (b'{"run_id": "r", "team_id": "echo", "input": "hi", "extra": 1}', "invalid_request"),
        (b'{"run_id": "r", "team_id": "echo"}', "invalid_request"),
        (b'{"run_id": "r", "team_id": "echo", "agent_id": "a", "input": "hi"}', "invalid_request"),
        (b'{"run_id": "r", "input": "hi"}', "invalid_request"),
        (b'{"run_id": "r\\u0000", "team_id": "echo", "input": "hi"}', "invalid_request"),
        (b'{"run_id": "r", "team_id": "echo", "input": "' + b"x" * 2_000_000 + b'"}', "request_too_large"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
async def test_what_is_no_request_is_a_dead_letter_and_the_next_goes_on(
    settings: Settings, broker: TestBroker, body: bytes, code: str
) -> None:
    async with worker_of(settings, echo):
        await broker.publish(body, routing_key="00", correlation_id="c1", headers={"trace": "t1"})
        dead = await broker.dead_letter()
        assert dead.headers["x-teamturn-code"] == code
        assert dead.headers["x-teamturn-reason"]
        assert (dead.body, dead.correlation_id, dead.headers["trace"]) == (body, "c1", "t1")
        after = await broker.ask("s1", "next")
        assert (await broker.reply(after))["status"] == "COMPLETED"


async def test_a_request_that_nothing_names_is_a_dead_letter(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        with pytest.MonkeyPatch.context() as patched:
            # aio-pika invents a message_id where there is none; an empty one is as good as none.
            original = encode.METHODS["shortstr"]
            patched.setitem(encode.METHODS, "shortstr", lambda text: b"\x00" if text == "none" else original(text))
            body = b'{"team_id": "echo", "input": "hi"}'
            await broker.publish(body, routing_key="00", message_id="none")
        assert (await broker.dead_letter()).headers["x-teamturn-code"] == "missing_run_id"


async def test_copies_to_other_keys_are_not_multiplied(settings: Settings, broker: TestBroker) -> None:
    """A CC header repeated at each hop would make one request many, and each of them many more."""
    async with worker_of(settings, echo):
        body = {"run_id": "r1", "session_id": "s1", "team_id": "echo", "input": "hi"}
        await broker.publish(body, routing_key="none", headers={"CC": [f"{slot:02x}" for slot in range(32)]})
        after = [await broker.ask(f"s{number}") for number in range(4)]
        await broker.replies_of(["r1", *after])
    copies = sum(1 for message in broker.replies if message.message_id == "r1")
    assert copies <= 33


async def test_a_nul_in_an_answer_is_replaced_and_the_rest_is_kept(settings: Settings, broker: TestBroker) -> None:
    async with worker_of(settings, echo):
        run_id = await broker.ask("s1", "a\x00b", session_state={"k\x00": "\x00"})
        reply = await broker.reply(run_id)
    assert reply["status"] == "COMPLETED"
    assert reply["content"] == "a\ufffdb after []"


async def test_a_made_up_reply_to_does_not_hold_up_its_session_or_other_replies(
    settings: Settings, broker: TestBroker
) -> None:
    """RabbitMQ 3.10 closes the connection that publishes to such an address."""
    async with worker_of(settings, echo):
        made_up = {"run_id": "r1", "session_id": "s1", "team_id": "echo", "input": "hi"}
        await broker.publish(made_up, reply_to="amq.rabbitmq.reply-to.x.y")
        after = await broker.ask("s1", "next")
        assert (await broker.reply(after))["turn"] == 2
