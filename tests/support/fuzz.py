"""Messages that strangers could send: valid ones, and mutated, cut, blown up and hostile ones.

Each is told from all others by its AMQP message_id and correlation_id, so that whatever becomes of it can be found.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.support.broker import slot

Json = dict[str, Any]

_TEAMS: Final = ("echo", "echo", "echo", "newsroom", "broken", "nobody")
_SESSIONS: Final = 200
_ODD_TEXTS: Final = (
    "",
    "\x00",
    "a\x00b",
    "\u202e\u0000\ufeff",
    "'; drop table ai.agno_sessions; --",
    "%s%n%x {0} {{}} ${jndi:ldap://x} $(id) `id`",
    "\x1b[2J\x1b]0;title\x07",
    "../../etc/passwd",
    "__proto__",
    "null",
    "NaN",
    "🦀" * 63,
    "x" * 255,
    "x" * 256,
    "\n\t\r",
)
_ODD_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    10**400,
    [],
    {},
    [[]],
    {"a": {"b": {}}},
    *_ODD_TEXTS,
)
_FIELDS: Final = (
    "run_id",
    "session_id",
    "team_id",
    "agent_id",
    "workflow_id",
    "user_id",
    "input",
    "session_state",
    "metadata",
    "stream",
    "deadline",
    "on_busy",
    "unheard_of",
)


@dataclass(frozen=True)
class Shot:
    """One message to publish."""

    token: str
    body: bytes
    routing_key: str
    properties: Json = field(default_factory=dict)


class Shooter:
    """Makes messages from a seed."""

    def __init__(self, seed: int, *, largest_bytes: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._seed = seed
        self._largest_bytes = largest_bytes
        self._sent: list[bytes] = []
        """Of the valid ones, some."""

    def shots(self, number: int) -> Iterator[Shot]:
        """So many messages."""
        kinds: list[tuple[int, Callable[[str], Shot]]] = [
            (50, self._valid),
            (20, self._mutated),
            (10, self._malformed),
            (8, self._with_odd_properties),
            (6, self._again),
            (4, self._deep_or_wide),
            (1, self._huge),
        ]
        weights, makers = zip(*kinds, strict=True)
        for count in range(number):
            token = f"fuzz-{self._seed}-{count:06}"
            (make,) = self._rng.choices(makers, weights)
            yield make(token)

    def _fields(self, token: str) -> Json:
        session = self._rng.randrange(_SESSIONS)
        # A session keeps its team, unless somebody is mistaken.
        team = session if self._rng.random() < 0.95 else self._rng.randrange(_SESSIONS)
        return {
            "run_id": token,
            "session_id": f"session-{session}",
            "team_id": _TEAMS[team % len(_TEAMS)],
            "input": self._rng.choice(("hello", *_ODD_TEXTS)) or "hello",
        }

    def _shot(self, token: str, body: bytes, key: str | None = None, **properties: Any) -> Shot:
        own = {"message_id": token, "correlation_id": token}
        return Shot(token, body, key if key is not None else "00", own | properties)

    def _valid(self, token: str) -> Shot:
        fields = self._fields(token)
        if self._rng.random() < 0.02:
            fields["user_id"] = f"user-{self._rng.randrange(3)}"
        if self._rng.random() < 0.2:
            fields["session_state"] = {"seen": self._rng.choice(_ODD_TEXTS)}
        if self._rng.random() < 0.1:
            late = timedelta(seconds=self._rng.choice((-60, 60)))
            fields["deadline"] = (datetime.now(UTC) + late).isoformat()
        body = json.dumps(fields).encode()
        if len(self._sent) < 1_000:
            self._sent.append(body)
        key = (
            slot(fields["session_id"]) if self._rng.random() < 0.8 else self._rng.choice(("", "zz", "00", "elsewhere"))
        )
        return self._shot(token, body, key)

    def _again(self, token: str) -> Shot:
        """A run_id that was there before, with the same content or with another."""
        if not self._sent:
            return self._valid(token)
        fields = json.loads(self._rng.choice(self._sent))
        if self._rng.random() < 0.5:
            fields[self._rng.choice(("input", "session_id", "user_id"))] = "another"
        return self._shot(token, json.dumps(fields).encode(), slot(fields["session_id"]))

    def _mutated(self, token: str) -> Shot:
        fields = self._fields(token)
        for _ in range(self._rng.randint(1, 3)):
            name = self._rng.choice(_FIELDS)
            if self._rng.random() < 0.3:
                fields.pop(name, None)
            else:
                fields[name] = self._rng.choice(_ODD_VALUES)
        text = json.dumps(fields)
        if self._rng.random() < 0.1:
            text = text.replace('"run_id"', '"run_id": "twice", "run_id"', 1)
        return self._shot(token, text.encode(), self._rng.choice(("00", "ff", "")))

    def _malformed(self, token: str) -> Shot:
        whole = json.dumps(self._fields(token)).encode()
        cut = self._rng.randrange(len(whole))
        body = self._rng.choice(
            (
                whole[:cut],
                whole[:cut] + self._rng.randbytes(3) + whole[cut:],
                self._rng.randbytes(self._rng.randrange(200)),
                b"\xef\xbb\xbf" + whole,
                whole.decode().encode("utf-16"),
                whole.replace(b"hello", b"\\ud800"),
                b"[" + whole + b"]",
                b"null",
                b"",
                whole + whole,
            )
        )
        return self._shot(token, body)

    def _deep_or_wide(self, token: str) -> Shot:
        fields = json.dumps(self._fields(token))[:-1]
        value = self._rng.choice(
            (
                "[" * 500 + "]" * 500,
                '{"a":' * 120 + "1" + "}" * 120,
                "[" + ",".join("1" * 20_000) + "]",
                "1e400",
                "9" * 5_000,
                '"' + "x" * 50_000 + '"',
            )
        )
        return self._shot(token, f'{fields}, "metadata": {{"v": {value}}}}}'.encode())

    def _huge(self, token: str) -> Shot:
        fields = self._fields(token) | {"input": "x" * self._largest_bytes}
        return self._shot(token, json.dumps(fields).encode())

    def _with_odd_properties(self, token: str) -> Shot:
        shot = self._valid(token)
        odd: list[Json] = [
            {"expiration": 1},
            {"priority": 9},
            {"reply_to": "teamturn.results"},
            {"reply_to": "nobody-has-this-queue"},
            {"reply_to": "amq.rabbitmq.reply-to.made-up"},
            {"reply_to": "x" * 255},
            {"headers": {"CC": ["01", "02"]}},
            {"headers": {"x-teamturn-passed-on": "1"}},
            {"headers": {"x-teamturn-code": "internal_error", "x-death": "no table"}},
            {"headers": {"deep": {"er": {"still": [1, None, 2**60]}}, "": ""}},
            {"headers": {f"h{number}": "v" * 100 for number in range(300)}},
            {"content_type": "text/html", "content_encoding": "gzip", "type": "x" * 255, "app_id": "\x00"},
            {"timestamp": datetime.fromtimestamp(2**31, UTC)},
            {"delivery_mode": 1},
        ]
        return Shot(shot.token, shot.body, shot.routing_key, shot.properties | self._rng.choice(odd))


def resident_bytes(pid: int) -> int:
    """How much memory a process has in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
