"""Dead letters as values: what can be told of one, and which of them are meant. Pure.

Whoever may publish can send anything there: nothing of a message is taken for what it should be, and nothing raises.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage
from pydantic import JsonValue

from schemas.dead_letters import DeadLetter, DeadLetterContent
from schemas.ids import SessionType
from worker.intake.delivery import message_id_of
from worker.intake.forwarding import (
    ATTEMPTS_HEADER,
    BROKERS_COUNTERS,
    CODE_HEADER,
    OWN_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    STEPS_HEADER,
    TIME_HEADER,
    TOKENS_HEADER,
)
from worker.intake.reading import known_ids

_DIGEST_DIGITS: Final = 12
_LARGEST_READ_BYTES: Final = 16 * 2**20
"""What is larger than RabbitMQ 4 takes is not looked into."""
_MOST_LEVELS: Final = 50
_BROKERS_OWN_HEADERS: Final = ("x-death", "x-first-death-", "x-last-death-", *BROKERS_COUNTERS)
_PROPERTIES: Final = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration"),
    *("message_id", "timestamp", "type", "user_id", "app_id"),
)


def dead_letter(message: AbstractIncomingMessage) -> DeadLetter:
    """Return what can be told of a message."""
    headers: dict[str, Any] = dict(message.headers or {})
    known = known_ids(message.body, message_id_of(message), largest_bytes=_LARGEST_READ_BYTES)
    target_type = SessionType(known["session_type"]) if "session_type" in known else None
    run_id = known.get("run_id")
    death = _death(headers)
    code = _text(headers.get(CODE_HEADER))
    return DeadLetter(
        id=run_id or hashlib.sha256(message.body).hexdigest()[:_DIGEST_DIGITS],
        time=_time(headers.get(TIME_HEADER)) or _time(death.get("time")),
        code=code or _text(death.get("reason")),
        reason=_text(headers.get(REASON_HEADER)) if code else _broker_s_reason(death),
        queue=_text(headers.get(QUEUE_HEADER)) or _text(death.get("queue")),
        run_id=run_id,
        session_id=known.get("session_id"),
        user_id=known.get("user_id"),
        target_type=target_type,
        target_id=known.get(f"{target_type.value}_id") if target_type else None,
        size_bytes=len(message.body),
        attempts=_count(headers.get(ATTEMPTS_HEADER)),
        steps=_count(headers.get(STEPS_HEADER)),
        tokens=_count(headers.get(TOKENS_HEADER)),
    )


def content_of(message: AbstractIncomingMessage) -> DeadLetterContent:
    """Return all of a message."""
    set_properties = {name: getattr(message, name) for name in _PROPERTIES}
    try:
        body, encoding = message.body.decode(), "utf-8"
    except UnicodeDecodeError:
        body, encoding = base64.b64encode(message.body).decode(), "base64"
    return DeadLetterContent(
        **dead_letter(message).model_dump(),
        headers={str(name): _as_json(value) for name, value in (message.headers or {}).items()},
        properties={name: _as_json(value) for name, value in set_properties.items() if value is not None},
        body=body,
        body_encoding=encoding,
    )


def headers_as_sent(message: AbstractIncomingMessage) -> dict[str, Any]:
    """Return the headers that its producer gave it: without those of its burial."""
    burial = (OWN_HEADERS, *_BROKERS_OWN_HEADERS)
    return {name: value for name, value in (message.headers or {}).items() if not name.startswith(burial)}


def fingerprint_of(message: AbstractIncomingMessage) -> bytes:
    """Return 32 bytes by which the same message is known when it is looked at again."""
    headers = sorted(
        (name, repr(value)) for name, value in (message.headers or {}).items() if name not in BROKERS_COUNTERS
    )
    return hashlib.sha256(repr((message.message_id, headers)).encode(errors="replace") + message.body).digest()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that agree with everything that is said here."""

    ids: frozenset[str] = frozenset()
    """Any of these; none: of any id."""
    code: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    user_id: str | None = None
    target_type: SessionType | None = None
    target_id: str | None = None
    since: datetime | None = None
    """Buried then or later; what does not say when is not."""

    def __contains__(self, letter: DeadLetter) -> bool:
        """Whether it is meant."""
        asked_and_found = (
            (self.code, letter.code),
            (self.session_id, letter.session_id),
            (self.run_id, letter.run_id),
            (self.user_id, letter.user_id),
            (self.target_type, letter.target_type),
            (self.target_id, letter.target_id),
        )
        return (
            (not self.ids or letter.id in self.ids)
            and all(asked is None or asked == found for asked, found in asked_and_found)
            and (self.since is None or (letter.time is not None and letter.time >= self.since))
        )


def _death(headers: dict[str, Any]) -> dict[str, Any]:
    """Return RabbitMQ's own note of the last time that it buried a message."""
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _broker_s_reason(death: dict[str, Any]) -> str | None:
    reason = _text(death.get("reason"))
    return None if reason is None else f"RabbitMQ buried it: {reason}"


def _text(value: Any) -> str | None:  # noqa: ANN401 - a header of any kind
    match value:
        case str():
            return value
        case bytes():
            return value.decode(errors="replace")
        case _:
            return None


def _time(value: Any) -> datetime | None:  # noqa: ANN401 - a header of any kind
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value) or "")
        return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _count(value: Any) -> int | None:  # noqa: ANN401 - a header of any kind
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_json(value: Any, levels: int = _MOST_LEVELS) -> JsonValue:  # noqa: ANN401 - a header of any kind
    match value:
        case dict() | list() if not levels:
            return "…"
        case dict():
            return {str(name): _as_json(item, levels - 1) for name, item in value.items()}
        case list():
            return [_as_json(item, levels - 1) for item in value]
        case bytes() | datetime():
            return value.isoformat() if isinstance(value, datetime) else value.decode(errors="replace")
        case bool() | int() | str() | None:
            return value
        case _:
            return str(value)
