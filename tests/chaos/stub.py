"""The model stub as this process sees it: the calls that it got, and the ones that it holds."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.chaos.evidence import Call
from tests.support.workers import ROOT


class ModelStub:
    """`python -m tests.chaos.model`, from entering to leaving the block."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._awaited: dict[tuple[str, str], asyncio.Future[Call]] = {}
        self.calls: list[Call] = []
        """Every call, in order."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.model",
            env=dict(self._environment),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.url: str = json.loads(await self._process.stdout.readline())["url"]
        self._reading = asyncio.create_task(self._read(self._process.stdout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reading
        await self._process.wait()

    async def held(self, run_id: str, step: str) -> Call:
        """Wait until a call is held, and return it."""
        return await asyncio.shield(self._future(run_id, step))

    def let_go(self, call: Call) -> None:
        """Have a held call answered."""
        self.do_not_hold(call.run_id, call.step)

    def do_not_hold(self, run_id: str, step: str) -> None:
        """Have a call answered that is held, or still to come."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{run_id} {step}\n".encode())

    async def _read(self, output: asyncio.StreamReader) -> None:
        while line := await output.readline():
            told = json.loads(line)
            call = Call(told["run"], told["step"], told["began"], int(told["worker"]), told["held"])
            self.calls.append(call)
            if call.held:
                self._future(call.run_id, call.step).set_result(call)

    def _future(self, run_id: str, step: str) -> asyncio.Future[Call]:
        if (run_id, step) not in self._awaited:
            self._awaited[run_id, step] = asyncio.get_running_loop().create_future()
        return self._awaited[run_id, step]
