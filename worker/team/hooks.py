"""What every model request and tool call of a turn goes through: one pydantic-ai capability.

A model request that fails for a passing reason is made again, after a while. A tool that raises ends the turn with a
code of its own. Tools that change the session state from threads are kept apart.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import structlog
from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapModelRequestHandler, WrapToolExecuteHandler
from pydantic_ai.exceptions import AgentRunError, RetryModelRequest
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
)
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import AbstractToolset
from typing_extensions import override

from worker.cancellation import was_cancelled
from worker.errors import ToolFailed, TurnFailed
from worker.executors.json_values import clean, cleaned_json
from worker.team.approvals import decided
from worker.team.budget import Budget
from worker.team.failures import described, given_up, is_passing, seconds_asked_for
from worker.team.prices import tell_response
from worker.team.streaming import is_watched, tell, tell_call
from worker.team.toolsets import AsSteps, guarded

_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 8.0
_LONGEST_ASKED_SECONDS: Final = 60.0
"""A provider that asks for more patience than this is not waited for: the reply says `retryable` instead. It is what
OpenAI's own client goes by."""

_log = structlog.get_logger()


@dataclass
class TurnHooks(AbstractCapability[Any]):
    """The hooks of one agent; each run of it gets a copy."""

    model_retries: int
    as_steps: AsSteps | None = None
    """Makes a toolset's calls steps, where they are recorded."""
    _failed: Counter[int] = field(default_factory=Counter)
    """How many requests failed, by the step of the run."""

    @override
    async def for_run(self, ctx: RunContext[Any]) -> TurnHooks:
        return TurnHooks(self.model_retries, self.as_steps)

    @property
    @override
    def has_wrap_run_event_stream(self) -> bool:
        # Where calls are steps, the durable engine tells what happens.
        return self.as_steps is None and is_watched()

    @override
    async def wrap_run_event_stream(
        self, ctx: RunContext[Any], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterator[AgentStreamEvent]:
        async for event in stream:
            if self.as_steps is None:
                tell(event)
            yield event

    @override
    async def wrap_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, handler: WrapModelRequestHandler
    ) -> ModelResponse:
        budget = Budget.current()
        if budget is None:
            return self._told(await handler(request_context))
        with budget.request():
            response = self._told(await handler(request_context))
        outputs = {tool.name for tool in request_context.model_request_parameters.output_tools}
        budget.check_answer(sum(call.tool_name not in outputs for call in response.tool_calls))
        return response

    def _told(self, response: ModelResponse) -> ModelResponse:
        # Where calls are steps, the durable engine tells of them: here they may come from the journal.
        if self.as_steps is None:
            tell_response(response)
        return response

    @override
    async def on_model_request_error(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        self._failed[ctx.run_step] += 1
        tries = self._failed[ctx.run_step]
        seconds = _wait_seconds(tries, seconds_asked_for(error))
        name = request_context.model.model_name
        if not is_passing(error) or tries > self.model_retries or seconds > _LONGEST_ASKED_SECONDS:
            _log.error("model_failed", model=name, tries=tries, **described(error))
            ended = given_up(error, name)
            if ended is error:
                raise error
            raise ended from error
        _log.warning(
            "model_request_retried",
            model=name,
            reason=type(error).__name__,
            tries=tries,
            wait_seconds=round(seconds, 2),
        )
        await asyncio.sleep(seconds)
        raise RetryModelRequest

    @override
    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        # A lone surrogate in a model's text could not be sent back to it with the next request.
        parts = [_cleaned(part) for part in response.parts]
        unchanged = all(new is old for new, old in zip(parts, response.parts, strict=True))
        return response if unchanged else replace(response, parts=parts)

    @override
    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        tell_call(call)
        try:
            return await handler(args)
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and was_cancelled():
                raise
            # The tool awaited something that was cancelled, or it called sys.exit().
            raise _tool_failed(tool_def.name, error) from error

    @override
    async def after_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        result: Any,
    ) -> Any:
        if isinstance(result, ToolReturn):
            return result
        cleaned = cleaned_json(result)
        try:
            ToolReturnPart(tool_def.name, content=cleaned).model_response_str()
        except (ValueError, TypeError, RecursionError) as error:
            raise _tool_failed(tool_def.name, error) from error
        return cleaned

    @override
    async def on_tool_execute_error(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        error: Exception,
    ) -> Any:
        # What a delegated run ended with has its own code; the rest of these are pydantic-ai's own signals.
        if isinstance(error, TurnFailed | AgentRunError | ModelRetry):
            raise error
        raise _tool_failed(tool_def.name, error) from error

    @override
    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults:
        return decided(ctx, requests)

    @override
    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return toolset.visit_and_replace(partial(guarded, as_steps=self.as_steps))


def _tool_failed(tool: str, error: BaseException) -> ToolFailed:
    # The text may hold anything; the log, which is redacted, has all of it.
    _log.error("tool_failed", tool=tool, exc_info=error)
    return ToolFailed(f"the tool {tool!r} raised {type(error).__name__}")


def _cleaned(part: ModelResponsePart) -> ModelResponsePart:
    match part:
        case TextPart() | ThinkingPart():
            content = str(clean(part.content))
            return part if content == part.content else replace(part, content=content)
        case ToolCallPart(args=str() | dict() as args):
            cleaned: Any = cleaned_json(args)
            return part if cleaned == args else replace(part, args=cleaned)
        case _:
            return part


def _wait_seconds(tries: int, asked: float | None) -> float:
    if asked is not None:
        return asked
    longest = min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS)
    # Jitter: many turns that failed together must not come back together.
    return random.uniform(longest / 2, longest)  # noqa: S311 - nothing secret
