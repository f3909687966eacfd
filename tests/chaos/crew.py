"""The workers, each a process of the real command in a place of its own, where a new one is started when it ends."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from typing_extensions import override

from tests.chaos.evidence import Freeze, Upset
from tests.chaos.lines import Line
from tests.chaos.tally import Tally
from tests.chaos.upsets import Open, Upsets
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of
from worker.sandbox.reaper import Reaper
from worker.settings import Settings

_PAUSE_SECONDS: Final = 0.3
_AWAY_SECONDS: Final = 2.0
"""Between two starts without a server: each takes more of the machine than the server's own."""
_START_SECONDS: Final = 60
_END_SECONDS: Final = 60
_MISTAKE: Final = 2
"""The exit code of a worker that could not start: a server was away."""


@dataclass(eq=False)
class Place:
    """Where there is always a worker, or soon will be; its lines outlast it."""

    number: int
    amqp: Line
    postgres: Line
    process: Process | None = None
    asked_to_end: bool = False
    frozen_at: float | None = None
    """Since when it is frozen, if it is: unix seconds."""
    standing: Open | None = None
    """The same, as an upset."""
    log: Path | None = None
    """What the worker logs to."""

    @override
    def __str__(self) -> str:
        return f"worker {self.process.pid if self.process else '-'} in {self.log.name if self.log else '-'}"

    @property
    def lines(self) -> dict[str, Line]:
        """Its lines, by the server."""
        return {"amqp": self.amqp, "postgres": self.postgres}

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if there is none now."""
        return None if self.process is None or self.process.returncode is not None else self.process.pid


class Crew:
    """So many places, from entering to leaving the block, which kills all workers."""

    def __init__(
        self,
        settings: Settings,
        *,
        places: int,
        environment: Mapping[str, str],
        folder: Path,
        reaper: Reaper,
        tally: Tally,
        upsets: Upsets,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._folder = folder
        self._reaper = reaper
        self._tally = tally
        self._upsets = upsets
        self._say = say
        self._number = places
        self._stopping = False
        self.places: list[Place] = []
        self.freezes: list[Freeze] = []
        """Those that have ended, and not with the worker's death."""
        self.started = 0
        """How many workers there were so far."""

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        for number in range(1, self._number + 1):
            amqp = await self._stack.enter_async_context(Line(self._settings.amqp_url.get_secret_value()))
            postgres = await self._stack.enter_async_context(Line(self._settings.postgres_url.get_secret_value()))
            self.places.append(Place(number, amqp, postgres))
        self._keeping = [asyncio.create_task(self._keep(place)) for place in self.places]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        for place in self.places:
            self._signal(place, signal.SIGKILL)
        await asyncio.gather(*self._keeping)
        await self._stack.aclose()

    async def consuming(self) -> None:
        """Wait until every worker consumes its queues."""

        def all_do() -> bool:
            return all(place.log and "worker_consuming" in place.log.read_text() for place in self.places)

        await eventually(all_do, seconds=_START_SECONDS)

    def any_place(self, rng: random.Random) -> Place | None:
        """A place with a worker that is not frozen, by chance; None if there is none just now."""
        return rng.choice([place for place in self.places if place.pid and place.frozen_at is None] or [None])

    def place_of(self, pid: int) -> Place | None:
        """The place of a worker, if that is still there."""
        return next((place for place in self.places if place.pid == pid), None)

    def kill(self, place: Place, why: str) -> None:
        """SIGKILL."""
        if self._signal(place, signal.SIGKILL):
            place.asked_to_end = True
            self._tally.counts["kills"] += 1
            self._tally.count(why, place)

    def terminate(self, place: Place) -> None:
        """SIGTERM: it drains, and is no longer there."""
        place.asked_to_end |= self._signal(place, signal.SIGTERM)
        self._upsets.now(Upset.DEATH)

    def freeze(self, place: Place) -> None:
        """SIGSTOP, until it is thawed or killed."""
        if self._signal(place, signal.SIGSTOP):
            place.frozen_at = time.time()
            place.standing = self._upsets.begin(Upset.FREEZE)

    def thaw(self, place: Place) -> None:
        """SIGCONT."""
        if place.frozen_at is not None and place.pid is not None:
            self.freezes.append(Freeze(place.pid, place.frozen_at, time.time()))
            self._signal(place, signal.SIGCONT)
        self._unfrozen(place)

    def _unfrozen(self, place: Place) -> None:
        if place.standing is not None:
            self._upsets.end(place.standing)
        place.frozen_at = place.standing = None

    def thaw_all(self) -> None:
        """Have every worker and every line go on as usual."""
        for place in self.places:
            self.thaw(place)
            place.amqp.delay_seconds = place.postgres.delay_seconds = 0.0

    async def end(self) -> list[int]:
        """Tell all to end, wait until they have, and return their exit codes."""
        self._stopping = True
        for place in self.places:
            self.terminate(place)
        async with asyncio.timeout(_END_SECONDS):
            await asyncio.gather(*self._keeping)
        return [place.process.returncode or 0 for place in self.places if place.process is not None]

    def _signal(self, place: Place, number: signal.Signals) -> bool:
        if place.process is None or place.process.returncode is not None:
            return False
        place.process.send_signal(number)
        return True

    async def _keep(self, place: Place) -> None:
        while not self._stopping:
            code = await self._run_one(place)
            await asyncio.sleep(_AWAY_SECONDS if code == _MISTAKE else _PAUSE_SECONDS)

    async def _run_one(self, place: Place) -> int:
        """Run a worker to its end, and return its exit code."""
        self.started += 1
        log = self._folder / f"worker-{self.started:03}.log"
        settings = self._settings.model_copy(
            update={
                "amqp_url": type(self._settings.amqp_url)(place.amqp.url),
                "postgres_url": type(self._settings.postgres_url)(place.postgres.url),
            }
        )
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "worker"),
                env=environment_of(settings, **self._environment),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._reaper.watch_process(process.pid, signal.SIGKILL)
        place.asked_to_end = False
        self._unfrozen(place)
        place.process, place.log = process, log
        began = time.monotonic()
        if self._stopping:
            self.terminate(place)
        code = await process.wait()
        self._upsets.now(Upset.DEATH)
        self._reaper.forget_process(process.pid)
        if not place.asked_to_end:
            self._ended_by_itself(place, code, time.monotonic() - began)
        return code

    def _ended_by_itself(self, place: Place, code: int, seconds: float) -> None:
        if code == -signal.SIGKILL:
            self._tally.count("poison_deaths", place)
        elif code == _MISTAKE:
            self._tally.count("starts_without_a_server", place)
        else:
            lines = place.log.read_text(errors="replace").splitlines() if place.log else []
            last = lines[-1] if lines else "it has said nothing"
            self._tally.count("ended_by_themselves", f"{place}: {last}")
            self._say(f"{place} ended by itself after {seconds:.0f} s with code {code}: {last}")
