"""What the gateway is told by its environment; app.py has the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from identity import kept_secret
from worker.sandbox.box import state_file
from worker.sandbox.reaper import read_kept

SHORTEST_SECRET_BYTES: Final = 16


@dataclass(frozen=True)
class Settings:
    """What the gateway is told by its environment."""

    amqp_url: str
    postgres_url: str
    prefix: str
    schema: str
    teams: list[str]
    names: list[str]
    host: str
    port: int
    heartbeat_seconds: float
    secret: bytes

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Settings:
        """Read them; without any URL, a demo that was left running is the one. Raises ValueError for a wrong one."""
        urls = {"amqp_url": given.get("TEAMTURN_AMQP_URL"), "postgres_url": given.get("TEAMTURN_POSTGRES_URL")}
        if not any(urls.values()):
            urls |= read_kept(state_file()) or {}
        secret = given.get("WEB_CHAT_SECRET", "").encode() or kept_secret(state_file().with_name("web_chat.secret"))
        if len(secret) < SHORTEST_SECRET_BYTES:
            raise ValueError(f"WEB_CHAT_SECRET is too short to be one: it has {SHORTEST_SECRET_BYTES} bytes at least")
        postgres_url = urls["postgres_url"] or "postgresql://postgres@localhost:5432/postgres"
        return cls(
            amqp_url=urls["amqp_url"] or "amqp://guest:guest@localhost:5672/",
            # What stands behind a + is for SQLAlchemy: postgresql+psycopg://…
            postgres_url=re.sub(r"^(\w+)\+\w+:", r"\1:", postgres_url),
            prefix=given.get("TEAMTURN_PREFIX") or "teamturn",
            schema=given.get("TEAMTURN_DB_SCHEMA") or "ai",
            teams=re.findall(r"[^,\s]+", given.get("WEB_CHAT_TEAMS") or "demo,panel"),
            names=re.findall(r"[^,\s]+", given.get("WEB_CHAT_NAMES") or "localhost,127.0.0.1"),
            host=given.get("WEB_CHAT_HOST") or "127.0.0.1",
            port=int(given.get("WEB_CHAT_PORT") or 8000),
            heartbeat_seconds=float(given.get("WEB_CHAT_HEARTBEAT") or 15),
            secret=secret,
        )
