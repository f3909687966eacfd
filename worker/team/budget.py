"""What a turn has used and may use: its own limits, and within them those of the teams nested in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field

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

    @staticmethod
    def current() -> Budget | None:
        """Return the budget of the agent's run that this code is part of, if it is of one."""
        return _current.get()

    @contextmanager
    def spent_here(self) -> Iterator[None]:
        """Make this the current budget."""
        token = _current.set(self)
        try:
            yield
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

    def check_above(self) -> None:
        """Raise UsageLimitExceeded if another request would exceed a level above, with all that runs there now."""
        level = self.above
        while level is not None:
            total, limits = level.total(), level.limits or UsageLimits()
            limits.check_before_request(total)
            limits.check_tokens(total)
            limits.check_before_tool_call(total)
            level = level.above

    def total(self) -> RunUsage:
        """Return what this level has used, with the nested ones that run now."""
        total = copy(self.usage)
        for inner in self._nested:
            total.incr(inner.total())
        return total
