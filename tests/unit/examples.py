"""Whole, valid values for tests; each function takes what a test wants otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from aio_pika.abc import AbstractIncomingMessage
from pydantic import JsonValue

from schemas.ids import SessionType, Target
from schemas.requests import RunRequest
from worker.executors.attempt import new_turn
from worker.executors.function import FunctionExecutor, executor
from worker.executors.turn import PastRun, Turn, TurnContext
from worker.intake.delivery import ChannelLife, Delivery, RequestDelivery
from worker.sessions.claim import Claim, Receipt, SessionRow

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
REQUEST: dict[str, Any] = {"run_id": "r1", "session_id": "s1", "team_id": "t1", "input": "hello"}

A_DIRECT_ADDRESS = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA3OTU0NzQyOAAAArAAAAAAawV4Fw==.y8kxymQ7hBoW5MeNvVFUuw=="
"""As RabbitMQ 3.10.8 gave it to a requester."""


def request_fields(**fields: Any) -> dict[str, Any]:
    """The fields of a request, as a producer would send them; a field given as ... is left out."""
    made = REQUEST | fields
    if {"agent_id", "workflow_id"} & fields.keys() and "team_id" not in fields:
        del made["team_id"]
    return {name: value for name, value in made.items() if value is not ...}


def a_request(**fields: Any) -> RunRequest:
    return RunRequest.model_validate(request_fields(**fields))


def a_body(**fields: Any) -> bytes:
    return json.dumps(request_fields(**fields)).encode()


def a_turn(**fields: Any) -> Turn:
    return new_turn(a_request(**fields), None, TurnContext(NOW), attempt=1)


def a_session(**fields: Any) -> SessionRow:
    made: dict[str, Any] = {
        "session_type": SessionType.TEAM,
        "target_id": "t1",
        "user_id": None,
        "name": None,
        "session_state": {},
        "metadata": {},
        "summary": None,
        "turn_seq": 1,
    }
    return SessionRow(**made | fields)


def a_receipt(request: RunRequest, **fields: Any) -> Receipt:
    """The receipt that a request leaves when it is answered."""
    made: dict[str, Any] = {
        "session_id": request.session_id,
        "user_id": request.user_id,
        "target": request.target,
        "fingerprint": request.fingerprint,
        "reply": b'{"status":"COMPLETED"}',
    }
    return Receipt(**made | fields)


def a_claim(**fields: Any) -> Claim:
    made: dict[str, Any] = {
        "database_time": NOW,
        "receipt": None,
        "run_exists": False,
        "session": None,
        "history": (),
    }
    return Claim(**made | fields)


def a_past_run(number: int, **fields: Any) -> PastRun:
    made: dict[str, Any] = {
        "run_id": f"past-{number}",
        "input": f"question {number}",
        "content": f"answer {number}",
        "created_at": 1_900_000_000 + number,
    }
    return PastRun(**made | fields)


def context_of(*history: PastRun) -> TurnContext:
    """What a turn of a session with these runs is given."""
    return TurnContext(NOW, history)


def executor_of(function: Callable[[Turn], Awaitable[JsonValue]]) -> FunctionExecutor:
    """An executor of the team t1."""
    return executor("t1")(function)


def team(name: str) -> Target:
    return Target(type=SessionType.TEAM, id=name)


def agent(name: str) -> Target:
    return Target(type=SessionType.AGENT, id=name)


@dataclass
class FakeMessage:
    """What of an AMQP message the intake reads. It counts its acknowledgements, or fails them."""

    body: bytes = b""
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: dict[str, Any] | None = None
    content_type: str | None = "application/json"
    content_encoding: str | None = None
    expiration: float | None = None
    priority: int | None = None
    timestamp: datetime | None = None
    type: str | None = None
    app_id: str | None = None
    user_id: str | None = None
    exchange: str | None = "teamturn.requests"
    routing_key: str | None = "00"
    delivery_tag: int | None = 1
    redelivered: bool | None = False
    acknowledged: int = 0
    ack_error: Exception | None = None
    ack_order: list[FakeMessage] = field(default_factory=list, repr=False)

    async def ack(self) -> None:
        if self.ack_error is not None:
            raise self.ack_error
        self.acknowledged += 1
        self.ack_order.append(self)


def a_delivery(
    message: FakeMessage | None = None, *, source: str = "teamturn.requests.0", life: ChannelLife | None = None
) -> Delivery:
    return Delivery(
        message=cast("AbstractIncomingMessage", message or FakeMessage()),
        source=source,
        life=life or ChannelLife(),
    )


def a_request_delivery(
    run_id: str = "r1", session_id: str = "s1", *, life: ChannelLife | None = None
) -> RequestDelivery:
    return RequestDelivery(a_delivery(life=life), a_request(run_id=run_id, session_id=session_id))


def nested(levels: int) -> JsonValue:
    """A list in a list in a list …, with text in the innermost."""
    value: JsonValue = "leaf"
    for _ in range(levels):
        value = [value]
    return value


async def everything_that_can_run() -> None:
    """Let all tasks go on until they wait for something; for saying that something does not happen."""
    for _ in range(20):
        await asyncio.sleep(0)
