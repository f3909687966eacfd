"""Toolsets as turns use them.

Tools that change the session's state from threads are kept apart; a server that can't be reached has a code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import structlog
from pydantic_ai import RunContext
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.toolsets import AbstractToolset, DynamicToolset, FunctionToolset, ToolsetFunc, WrapperToolset
from pydantic_ai.toolsets.abstract import ToolsetTool
from pydantic_ai.toolsets.function import FunctionToolsetTool
from typing_extensions import override

from worker.errors import ToolFailed, TurnFailed
from worker.executors.state_changes import watched
from worker.executors.turn import Turn

DELEGATES: Final = "teamturn_delegates"
"""In the metadata of tools that run members."""

_log = structlog.get_logger()


AsSteps = Callable[[AbstractToolset[Turn]], AbstractToolset[Turn]]
"""Makes a toolset's calls steps of the turn."""


def guarded(toolset: AbstractToolset[Turn], *, as_steps: AsSteps | None = None) -> AbstractToolset[Turn]:
    """Return a toolset, such as has tools of its own, as turns use it."""
    match toolset:
        case FunctionToolset():
            found: AbstractToolset[Turn] = _StateInTurn(toolset)
        case DynamicToolset():
            # Made within the run: what the function returns is guarded then.
            made = _GuardedWhenMade(toolset.toolset_func, as_steps)
            return DynamicToolset(made, per_run_step=toolset.per_run_step, id=toolset.id)
        case _:
            found = _Reached(toolset)
    return found if as_steps is None else as_steps(found)


@dataclass
class _GuardedWhenMade:
    """A function that makes toolsets, with what it makes guarded: one that it returns again is the same again."""

    make: ToolsetFunc[Turn]
    as_steps: AsSteps | None
    _last: AbstractToolset[Turn] | None = None
    _last_guarded: AbstractToolset[Turn] | None = None

    async def __call__(self, ctx: RunContext[Turn]) -> AbstractToolset[Turn] | None:
        made = self.make(ctx)
        if inspect.isawaitable(made):
            made = await made
        if made is not self._last:
            guard = partial(guarded, as_steps=self.as_steps)
            self._last, self._last_guarded = made, None if made is None else made.visit_and_replace(guard)
        return self._last_guarded


@dataclass
class _Reached(WrapperToolset[Turn]):
    """A toolset that may have to connect to something, such as an MCP server; that it could not has a code."""

    @override
    async def __aenter__(self) -> Self:
        try:
            await self.wrapped.__aenter__()
        except Exception as error:
            raise self._unreachable(error) from error
        return self

    @override
    async def __aexit__(self, *raised: object) -> None:
        try:
            await self.wrapped.__aexit__(*raised)
        except Exception as error:  # noqa: BLE001 - what was found with it is not lost for it
            _log.warning("toolset_not_closed", toolset=self.wrapped.label, exc_info=error)

    @override
    async def get_tools(self, ctx: RunContext[Turn]) -> dict[str, ToolsetTool[Turn]]:
        try:
            return await self.wrapped.get_tools(ctx)
        except (TurnFailed, AgentRunError, UserError):
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    @override
    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Turn], tool: ToolsetTool[Turn]
    ) -> Any:
        with watched(ctx.deps.session):
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)

    def _unreachable(self, error: Exception) -> ToolFailed:
        _log.error("toolset_unreachable", toolset=self.wrapped.label, exc_info=error)
        return ToolFailed(f"the {type(self.wrapped).__name__} could not be reached", retryable=True)


@dataclass
class _StateInTurn(WrapperToolset[Turn]):
    """Keeps tools that get the turn in a thread apart from all others that get it.

    Between such a tool's reading the state and its writing it, somebody else could. Async tools change it between two
    awaits, where no other one runs, and so go side by side; tools without the context don't see it.
    """

    @override
    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Turn], tool: ToolsetTool[Turn]
    ) -> Any:
        async with self._held(name, ctx, tool):
            with watched(ctx.deps.session):
                return await self.wrapped.call_tool(name, tool_args, ctx, tool)

    def _held(
        self, name: str, ctx: RunContext[Turn], tool: ToolsetTool[Turn]
    ) -> AbstractAsyncContextManager[None, bool | None]:
        if not isinstance(tool, FunctionToolsetTool) or not isinstance(self.wrapped, FunctionToolset):
            return nullcontext()
        known = self.wrapped.tools.get(tool.original_name or name)
        # Who delegates changes nothing by itself, and waits for members whose tools may want to be alone.
        if known is not None and (not known.takes_ctx or (known.metadata or {}).get(DELEGATES)):
            return nullcontext()
        lock = ctx.deps.session.lock
        return lock.shared() if tool.is_async else lock.alone()
