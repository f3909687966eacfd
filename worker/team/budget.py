"""What a turn has used and may use: its own limits, and within them those of the teams nested in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field

from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.usage import RunUsage, UsageLimits

_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


@dataclass(slots=True, eq=False)
class Budget:
    """The usage of one level, which pydantic-ai holds to this level's limits; the levels above are held to here.

    A level is a turn, members included, or the part of a nested team that has limits of its own.
    """

    usage: RunUsage
    limits: UsageLimits | None
    above: Budget | None = None
    _nested: list[Budget] = field(default_factory=list)
    under_way: int = 0
    """Requests that are not answered yet, those of nested levels included; pydantic-ai counts answered ones only."""
    was_exceeded: bool = False
    """Whether a limit of this level ended what ran within it."""

    @staticmethod
    def current() -> Budget | None:
        """Return the budget of the agent's run that this code is part of, if it is of one."""
        return _current.get()

    @property
    def exceeded(self) -> bool:
        """Whether a limit of this level, or of one above it, ended what ran within it."""
        return any(level.was_exceeded for level in self._levels())

    @contextmanager
    def spent_here(self) -> Iterator[None]:
        """Make this the current budget."""
        token = _current.set(self)
        try:
            yield
        except UsageLimitExceeded:
            self.was_exceeded = self.was_exceeded or not self.exceeded  # else it was a level above
            raise
        finally:
            _current.reset(token)

    @contextmanager
    def within(self, limits: UsageLimits | None) -> Iterator[Budget]:
        """Give a nested team limits of its own, if it has any, within those of this level."""
        if limits is None:
            yield self
            return
        inner = Budget(RunUsage(), limits, self)
        self._nested.append(inner)
        try:
            yield inner
        finally:
            self._nested.remove(inner)
            self.usage.incr(inner.usage)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Make a request to a model. Raises UsageLimitExceeded if it would exceed a limit of this level or above.

        What runs beside it counts: requests that are under way, and what the nested levels have used so far.
        """
        levels = list(self._levels())
        for level in levels:
            level.check()
        for level in levels:
            level.under_way += 1
        try:
            yield
        finally:
            for level in levels:
                level.under_way -= 1

    def check_answer(self, tool_calls: int) -> None:
        """Raise UsageLimitExceeded if an answer, with so many tool calls to make, exceeds a limit of a level above.

        To this level's, pydantic-ai sees itself.
        """
        above = self.above
        while above is not None:
            total, limits = above.total(), above.limits or UsageLimits()
            total.tool_calls += tool_calls
            try:
                with above.noticing():
                    limits.check_tokens(total)
                    limits.check_before_tool_call(total)
            except UsageLimitExceeded:
                self.usage.requests += 1  # pydantic-ai has not come to count it
                raise
            above = above.above

    def total(self) -> RunUsage:
        """Return what this level has used, with the nested ones that run now."""
        total = copy(self.usage)
        for inner in self._nested:
            total.incr(inner.total())
        return total

    def check(self) -> None:
        """Raise UsageLimitExceeded if another request would exceed a limit of this level."""
        total, limits = self.total(), self.limits or UsageLimits()
        total.requests += self.under_way
        with self.noticing():
            limits.check_before_request(total)
            limits.check_tokens(total)
            limits.check_before_tool_call(total)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Remember that a limit of this level was exceeded, if it is."""
        try:
            yield
        except UsageLimitExceeded:
            self.was_exceeded = True
            raise

    def _levels(self) -> Iterator[Budget]:
        level: Budget | None = self
        while level is not None:
            yield level
            level = level.above
