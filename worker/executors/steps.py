"""Steps: the named units of work of a turn, each run once and known by a key that is the same in every attempt."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from worker.executors.json_values import as_json


class Steps:
    """Runs a turn's steps. A step's key is `name#n`, n counted per name in the order of the calls."""

    def __init__(self) -> None:
        self._uses: Counter[str] = Counter()
        self.last_key: str | None = None
        """The step that was begun last; for people who ask where a turn is."""

    async def run(self, name: str, fn: Callable[[], Any]) -> JsonValue:
        """Run one step and return its result as plain JSON. Raises InvalidResult if it is none."""
        self._uses[name] += 1
        self.last_key = f"{name}#{self._uses[name]}"
        result = fn()
        if inspect.isawaitable(result):
            result = await result
        return as_json(result, what=f"step {name!r}")
