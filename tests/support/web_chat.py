"""The web chat of deploy/examples as a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of
from worker.sandbox.site import free_port
from worker.settings import Settings

APP = ROOT / "deploy" / "examples" / "web_chat" / "app.py"


class WebChat:
    """The gateway, on a port of its own; an async context manager. What it kept is gone when it is restarted."""

    def __init__(self, settings: Settings, *teams: str, **environment: str) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        own = {
            "WEB_CHAT_TEAMS": ",".join(teams),
            "WEB_CHAT_PORT": str(self._port),
            "WEB_CHAT_SECRET": os.urandom(9).hex(),
        }
        self._environment = environment_of(settings, **own) | environment

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def restart(self) -> None:
        """Kill it, and start it again where it was."""
        await self.stop()
        await self._start()

    async def ended(self) -> tuple[int, str]:
        """Start it, and wait for its end; return its exit code and standard error."""
        process = await self._process_of(stderr=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(30):
                _, error = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        return process.returncode or 0, error.decode()

    async def stop(self) -> None:
        """Kill it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _start(self) -> None:
        self._process = await self._process_of()
        await eventually(self._listens)

    async def _listens(self) -> bool:
        assert self._process.returncode is None, "the web chat has ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def _process_of(self, **more: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(APP), env=self._environment, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, **more
        )
