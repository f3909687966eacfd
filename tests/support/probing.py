"""Probing a worker as an orchestrator does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2

from worker.sandbox.site import free_port

__all__ = ["Probe", "free_port"]


@dataclass(frozen=True)
class Probe:
    """Asks one worker, by its port."""

    port: int
    host: str = "127.0.0.1"

    async def get(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://{self.host}:{self.port}{path}", timeout=5)

    async def ready(self) -> dict[str, Any]:
        """What /readyz says, its status code among it; nothing where nobody answers."""
        try:
            answer = await self.get("/readyz")
        except httpx2.TransportError:
            return {}
        return {"code": answer.status_code, **answer.json()}

    async def is_ready(self) -> bool:
        return (await self.ready()).get("ready") is True

    async def says(self, reason: str) -> bool:
        """Whether it is not ready, for this reason."""
        told = await self.ready()
        return told.get("code") == 503 and reason in told["reason"]
