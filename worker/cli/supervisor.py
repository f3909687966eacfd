"""`teamturn worker --processes N`: workers as processes, one of which that dies is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Final

import structlog

from worker.settings import PROCESS_NUMBER, SUPERVISED

_FIRST_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
_MISTAKE: Final = 2
"""The exit code of what an operator must mend: starting it again would not help."""

_log = structlog.get_logger()


class Supervisor:
    """Runs some workers until told to stop."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._running: set[asyncio.subprocess.Process] = set()
        self._told_to_stop = asyncio.Event()
        self._codes: list[int] = []
        self._first_tried = asyncio.Event()

    async def run(self) -> int:
        """Run the workers; SIGTERM and SIGINT are passed on to them. Return the exit code.

        The first is started before the others: if it can't start as it is set up, it has said why, and all end.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop)
        async with asyncio.TaskGroup() as group:
            for number in range(1, self._processes + 1):
                group.create_task(self._keep_running(number))
        return max(self._codes, default=0)

    def _stop(self) -> None:
        self._told_to_stop.set()
        for process in self._running:
            process.send_signal(signal.SIGTERM)

    async def _keep_running(self, number: int) -> None:
        if number > 1:
            await self._first_tried.wait()
        wait_seconds = _FIRST_WAIT_SECONDS
        has_started = False
        while not self._told_to_stop.is_set():
            started = time.monotonic()
            code, did_start = await self._run_once(number)
            has_started |= did_start
            if self._told_to_stop.is_set():
                self._codes.append(code)
                return
            # Once it has started, its set-up is right, and it is a server that is away for a while.
            if code == _MISTAKE and not has_started:
                self._codes.append(code)
                self._stop()
                return
            lasted = time.monotonic() - started
            wait_seconds = _FIRST_WAIT_SECONDS if lasted > _STEADY_SECONDS else wait_seconds
            _log.error("worker_died", number=number, code=code, lasted_seconds=round(lasted), wait_seconds=wait_seconds)
            await self._pause(wait_seconds)
            wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)

    async def _run_once(self, number: int) -> tuple[int, bool]:
        """Run a worker to its end; return its exit code, and whether it has started to work."""
        started, tells = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "worker"),
                env=os.environ | {SUPERVISED: str(tells), PROCESS_NUMBER: str(number)},
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[tells],
                # Ctrl-C reaches the whole process group; they are told once, by the supervisor.
                start_new_session=True,
            )
        finally:
            os.close(tells)
        self._running.add(process)
        _log.info("worker_process_started", number=number, pid=process.pid)
        if self._told_to_stop.is_set():
            process.send_signal(signal.SIGTERM)
        try:
            # Nothing, if it ended before it had started.
            did_start = bool(await asyncio.to_thread(os.read, started, 1))
            self._first_tried.set()
            return await process.wait(), did_start
        finally:
            self._first_tried.set()
            os.close(started)
            self._running.discard(process)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._told_to_stop.wait()
        except TimeoutError:
            return
