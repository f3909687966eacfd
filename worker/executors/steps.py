"""Steps: the named units of work of a turn, each made once and known by a key that is the same in every attempt."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any, Final

from pydantic import JsonValue

from worker.errors import TurnFailed
from worker.executors.journal import Asked, Journal
from worker.executors.json_values import as_json
from worker.executors.state_changes import HasState, watched

_FAILURE: Final = "failure"
_LONGEST_KEY_CHARACTERS: Final = 400
"""A key is part of an index, and a model chooses the ids of its calls."""


class Steps:
    """The steps of one part of a turn. A step's key is `path/name#n`, n counted per name in the order of the calls."""

    def __init__(self, session: HasState, journal: Journal | None = None, path: str = "") -> None:
        """`path` is the part's, the same in every attempt; '' is the turn itself."""
        self._session = session
        self.journal = journal or Journal()
        self._path = path
        self._uses: Counter[str] = Counter()
        self._given_back: defaultdict[str, list[int]] = defaultdict(list)
        """Numbers of calls that failed, the lowest first: for the next calls of the same name."""

    def within(self, part: str) -> Steps:
        """Return the steps of a part of the turn; `part` is the same in every attempt."""
        return Steps(self._session, self.journal, f"{self._path}{part}/")

    async def run(self, name: str, fn: Callable[[], Any], *, repeatable: bool = False) -> JsonValue:
        """Make one step and return its result as plain JSON. Raises InvalidResult if it is none."""

        async def make() -> JsonValue:
            with watched(self._session):
                result = fn()
                if inspect.isawaitable(result):
                    result = await result
            return as_json(result, what=f"step {name!r}")

        made: JsonValue = await self.call(name, Asked("", repeatable=repeatable), make)
        return made

    async def call(self, name: str, asked: Asked, make: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - JSON
        """Make a call of a model or a tool, `asked` without its key, which is made of the name."""
        with self.numbered(name, asked) as numbered:
            return await self.make(numbered, make)

    @contextmanager
    def numbered(self, name: str, asked: Asked) -> Iterator[Asked]:
        """Give a call its key for the block that makes it.

        Calls of one name side by side have a number each. A call whose failure is not kept gives its number back when
        it fails: the next one is the same call again.
        """
        given_back = self._given_back[name]
        if given_back:
            number = heappop(given_back)
        else:
            self._uses[name] += 1
            number = self._uses[name]
        try:
            yield replace(asked, key=self._key(name, number), name=name)
        except BaseException:
            if not asked.failure_kept:
                heappush(given_back, number)
            raise

    async def make(self, numbered: Asked, make: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - JSON
        """Make a call that has its key."""
        return await self.journal.run(numbered, self._state, make)

    def name_of_approval(self, call_id: str, asked: str) -> str:
        """Return what a call is known by that waits to be approved, the same each time that the turn comes to it.

        `asked` is the whole call: an approval is of nothing else that a model asks for under the same id.
        """
        with self.numbered(f"approval@{call_id}", Asked("")) as numbered:
            digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
            return f"{numbered.key}={digest[:32]}"

    def is_done(self, name: str) -> bool:
        """Return whether the next call of that name was made before, and is only given again."""
        given_back = self._given_back[name]
        number = given_back[0] if given_back else self._uses[name] + 1
        return self.journal.is_done(self._key(name, number))

    def failure_before(self) -> TurnFailed | None:
        """Return what the part failed with in an earlier attempt, if the turn went on without it."""
        return self.journal.failure_of(self._key(_FAILURE, 1), self._path, self._state())

    async def keep_failure(self, failure: TurnFailed) -> None:
        """Record that the part has failed, and the turn goes on without it."""
        await self.journal.keep_failure(self._key(_FAILURE, 1), failure)

    def _key(self, name: str, number: int) -> str:
        key = f"{self._path}{name}#{number}"
        if len(key) <= _LONGEST_KEY_CHARACTERS:
            return key
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{key[:_LONGEST_KEY_CHARACTERS]}…{digest}"

    def _state(self) -> dict[str, Any]:
        return self._session.state
