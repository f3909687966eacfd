"""When what was not as usual: what the checks excuse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos.evidence import Upset, UpsetTime


@dataclass(eq=False)
class Open:
    """An upset that has begun."""

    kind: Upset
    began: float


class Upsets:
    """Takes note of what is upset, from when to when."""

    def __init__(self) -> None:
        self._open: list[Open] = []
        self._over: list[UpsetTime] = []

    @property
    def times(self) -> list[UpsetTime]:
        """All of them; what goes on still ends now."""
        return [*self._over, *(UpsetTime(one.kind, one.began, time.time()) for one in self._open)]

    def now(self, kind: Upset) -> None:
        """Take note of what has happened just now."""
        self._over.append(UpsetTime(kind, time.time(), time.time()))

    def begin(self, kind: Upset) -> Open:
        """Take note of what begins."""
        one = Open(kind, time.time())
        self._open.append(one)
        return one

    def end(self, one: Open) -> None:
        """Take note of its end, unless that is known."""
        if one in self._open:
            self._open.remove(one)
            self._over.append(UpsetTime(one.kind, one.began, time.time()))

    @contextmanager
    def during(self, kind: Upset) -> Iterator[None]:
        """Take note of the time of this block."""
        one = self.begin(kind)
        try:
            yield
        finally:
            self.end(one)
