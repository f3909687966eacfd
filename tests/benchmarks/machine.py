"""On what was measured: the versions and settings that a figure depends on."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import aio_pika
import asyncpg
from pydantic import JsonValue

from tests.benchmarks import agno_turns, handwritten
from tests.benchmarks.stage import Stage
from worker.settings import Settings

_PACKAGES: Final = (
    *("teamturn", "aio-pika", "aiormq", "asyncpg", "pydantic", "pydantic-ai-slim"),
    *("agno", "sqlalchemy", "psycopg"),
)
_DURABILITY: Final = ("fsync", "synchronous_commit", "full_page_writes", "max_connections", "shared_buffers")


async def described(stage: Stage) -> Mapping[str, JsonValue]:
    """What to print beside the figures."""
    defaults = Settings()
    return {
        "processor": await asyncio.to_thread(_processor),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "rabbitmq": await _rabbitmq(stage.sandbox.amqp_url),
        **await _postgres(stage.sandbox.postgres_url),
        "packages": {name: _version(name) for name in _PACKAGES},
        "worker": {
            "TEAMTURN_PARTITIONS": defaults.partitions,
            "TEAMTURN_PREFETCH": defaults.prefetch,
            "TEAMTURN_MAX_CONCURRENT_TURNS": defaults.max_concurrent_turns,
        },
        "handwritten": {"pool": handwritten.POOL, "prefetch": handwritten.PREFETCH},
        "agno_consumer": {"driver": agno_turns.DRIVER, "prefetch": agno_turns.PREFETCH},
        "plan": asdict(stage.plan),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


async def _rabbitmq(url: str) -> str:
    connection = await aio_pika.connect(url)
    try:
        assert connection.transport is not None
        found = connection.transport.connection.server_properties.get("version", b"?")
        return found.decode() if isinstance(found, bytes) else str(found)
    finally:
        await connection.close()


async def _postgres(url: str) -> dict[str, JsonValue]:
    connection = await asyncpg.connect(url)
    try:
        settings: JsonValue = {name: await connection.fetchval(f"show {name}") for name in _DURABILITY}
        return {"postgres": await connection.fetchval("show server_version"), "postgres_settings": settings}
    finally:
        await connection.close()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
