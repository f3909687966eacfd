"""A program that is measured, as a process of its own, and what Linux knows of it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.acceptance.stage import QUICKER
from tests.support.waiting import eventually
from tests.support.workers import ROOT

_STOP_SECONDS = 15
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Program:
    """`python -m …`, from entering to leaving the block.

    What it logs goes to a file: reading it would take time from who is measured.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._words = words
        self._environment = environment
        self._log = log

    async def __aenter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self._words,
                env={**self._environment, **QUICKER},
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """End it at once, whatever it is at."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def consumes(self) -> None:
        """Wait until it has said that it consumes."""
        await self.said("(consuming)")

    async def said(self, pattern: str) -> str:
        """Wait until its log matches, and return what the first group of the pattern is there."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self._log.read_text(errors="replace"))

        await eventually(lambda: self._has_ended() or found() is not None, seconds=60)
        self.check()
        match = found()
        assert match is not None
        return match[1]

    def check(self) -> None:
        """Raise RuntimeError, with the end of its log, if it has ended."""
        if self._has_ended():
            lines = self._log.read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"{' '.join(self._words)} ended:", *lines]))

    def cpu_seconds(self) -> float:
        """The CPU time that it has used so far."""
        # The second field is the program's name in brackets, and may have blanks in it.
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def peak_memory_mb(self) -> float:
        """The most that it has had in memory, in MiB."""
        return self._memory_mb("VmHWM")

    def memory_mb(self) -> float:
        """What it has in memory now, in MiB."""
        return self._memory_mb("VmRSS")

    def _memory_mb(self, name: str) -> float:
        (line,) = (line for line in self._proc("status").splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024

    def _has_ended(self) -> bool:
        return self.process.returncode is not None

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text()
