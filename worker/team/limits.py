"""The limits of one turn, and what is settled at its end whatever came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import JsonValue
from pydantic_ai.durable_exec import replay_scope
from pydantic_ai.usage import RunUsage, UsageLimits

from worker.errors import TurnTimedOut
from worker.executors.journal import Journal
from worker.executors.json_values import as_json
from worker.executors.turn import Turn
from worker.team.budget import Budget
from worker.team.members import members_first
from worker.team.session_context import begin_state

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """What a turn of one target may use and take, and the state that its sessions begin with."""

    usage: UsageLimits | None
    timeout_seconds: float | None
    session_state: dict[str, JsonValue]

    @classmethod
    def of(cls, usage: UsageLimits | None, timeout: float | None, state: Mapping[str, Any] | None) -> TurnLimits:
        """Return the limits that these arguments, which have been checked, stand for."""
        begun = as_json(dict(state or {}), what="session_state")
        assert isinstance(begun, dict)  # noqa: S101 - for the type checker: an object stays one
        return cls(usage, timeout, begun)


async def within_limits(limits: TurnLimits, turn: Turn, answer: Callable[[Budget], Awaitable[_T]]) -> _T:
    """Take a turn within its limits. Raises TurnTimedOut past its time; `answer` raises UsageLimitReached."""
    usage = RunUsage()
    try:
        # What an earlier attempt did is neither traced nor counted again.
        with replay_scope():
            return await _in_time(limits, "the turn", turn, answer(Budget(usage, limits.usage)))
    finally:
        # Also of a turn that failed: its tokens were spent.
        turn.usage.input_tokens += usage.input_tokens
        turn.usage.output_tokens += usage.output_tokens
        turn.usage.model_requests += usage.requests
        turn.usage.tool_calls += usage.tool_calls
        turn.member_runs[:] = members_first(turn.member_runs)


async def within_part(
    limits: TurnLimits, what: str, part: Turn, budget: Budget, answer: Callable[[Budget], Awaitable[_T]]
) -> _T:
    """Do a member's or a step's part of a turn within its own limits, and those of the turn. Raises as a turn does."""
    with budget.within(limits.usage) as own:
        return await _in_time(limits, what, part, answer(own))


async def _in_time(limits: TurnLimits, what: str, turn: Turn, answering: Awaitable[_T]) -> _T:
    begin_state(turn, limits.session_state)
    with _limited(limits.timeout_seconds, turn.steps.journal) as time_limit:
        try:
            async with time_limit:
                return await answering
        except TimeoutError as error:
            if not time_limit.expired():
                raise
            raise TurnTimedOut(f"{what} ran longer than {limits.timeout_seconds:g} s") from error


@contextmanager
def _limited(seconds: float | None, journal: Journal) -> Iterator[asyncio.Timeout]:
    """Make a time limit that leaves out what the turn's steps wait to be recorded: that is not the turn's time."""
    loop = asyncio.get_running_loop()
    time_limit = asyncio.timeout(None)
    if seconds is None:
        yield time_limit
        return
    begun, waited_before = loop.time(), journal.waited_seconds
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        until = begun + seconds + journal.waited_seconds - waited_before
        if until > loop.time():
            timer = loop.call_at(until, look)
        else:
            time_limit.reschedule(until)

    timer = loop.call_at(begun + seconds, look)
    try:
        yield time_limit
    finally:
        timer.cancel()
