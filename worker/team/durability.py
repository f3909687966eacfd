"""Model requests and tool calls as steps of the turn's journal: a backend of pydantic-ai's durable execution.

A model request is repeatable: one whose answer was not recorded is made again. A tool call is not, unless the tool says
so in its metadata: {"teamturn": {"repeatable": True}}; {"teamturn": False} keeps it out of the journal, so that it is
made in each attempt, but for a call that somebody has approved. A tool that delegates is no step: what its members do
is.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from pydantic_ai import Agent, RunContext
from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    CallableOperationBackend,
    CapabilityOperationId,
    DurabilityEngineSpec,
    DurableOperationBackend,
    DurableOperationId,
    JournalOperationNamer,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    record_durable_unit,
)
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, PartDeltaEvent, PartStartEvent
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_core import to_json, to_jsonable_python
from typing_extensions import override

from worker.executors.journal import Asked
from worker.executors.json_values import cleaned_json
from worker.executors.steps import Steps
from worker.team.prices import tell_response
from worker.team.streaming import is_watched, tell, tell_all
from worker.team.toolsets import DELEGATES

CONFIG_KEY: Final = "teamturn"
"""In a tool's metadata: how its calls are recorded."""
_NAME: Final = "agent"
_NOT_ASKED: Final = frozenset({"timestamp", "run_id", "conversation_id"})
"""What of a message is another in each attempt, though it asks the same."""

_steps: ContextVar[Steps | None] = ContextVar("steps of the agent's run", default=None)


@contextmanager
def recorded_in(steps: Steps) -> Iterator[None]:
    """Have what agents do in the block be recorded as these steps."""
    token = _steps.set(steps if steps.journal.kept else None)
    try:
        yield
    finally:
        _steps.reset(token)


@dataclass(frozen=True, slots=True)
class _Config:
    """How an operation is recorded."""

    repeatable: bool = False


def step_of_call(tool: object, call_id: str | None) -> str:
    """Return the name of the step that a call of a tool is."""
    return f"tool:{tool}@{call_id}"


def _config_of_tool(operation: DurableOperationId, tool: object | None, _name: str) -> _Config | Literal[False]:
    if not isinstance(tool, ToolsetTool):
        return _Config()
    metadata = tool.tool_def.metadata or {}
    said = metadata.get(CONFIG_KEY, {})
    # Checking arguments has no effect that could be made twice.
    if not isinstance(operation, ToolsetCallToolId) or metadata.get(DELEGATES) or said is False:
        return False
    return _Config(repeatable=isinstance(said, dict) and said.get("repeatable") is True)


class _JournalBackend(CallableOperationBackend[_Config]):
    """Runs each operation as a step of the agent's run."""

    def __init__(self) -> None:
        config = RoleBasedOperationConfig(
            model=_Config(repeatable=True),
            event=_Config(repeatable=True),
            capability=_Config(),
            tool=_Config(),
            resolve_tool=_config_of_tool,
        )
        super().__init__(namer=JournalOperationNamer(_NAME), config=config)

    @override
    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: _Config,
    ) -> object:
        steps = _steps.get()
        made = False

        async def make() -> object:
            nonlocal made
            made = True
            result = cleaned_json(await body())
            if steps is not None and isinstance(operation_id, ModelRequestId):
                tell_response(result)
            return result

        if steps is None:
            return await make()
        step, asked = _step_of(operation_id, name, cache_key, config)
        try:
            return await steps.call(step, asked, make)
        finally:
            record_durable_unit(executed=made)


def _step_of(
    operation_id: DurableOperationId, name: str, cache_key: tuple[object, ...], config: _Config
) -> tuple[str, Asked]:
    """Return the name of the step that an operation is, and what it asks."""
    match operation_id:
        case ModelRequestId():
            asked = Asked("", _request_asked(cache_key), repeatable=True, failure_kept=False, tokens=_tokens_of)
            return "model.request", asked
        case ToolsetCallToolId():
            tool, arguments, context, *_ = cache_key
            assert isinstance(context, RunContext)  # noqa: S101 - for the type checker
            asked = Asked("", _hashed([tool, arguments]), repeatable=config.repeatable)
            return step_of_call(tool, context.tool_call_id), asked
        case CapabilityOperationId(capability_id=capability, operation=operation):
            return f"{capability}.{operation}", Asked("", repeatable=config.repeatable)
        case _:
            return name.removeprefix(f"{_NAME}__"), Asked("", repeatable=True, failure_kept=False)


def _request_asked(cache_key: tuple[object, ...]) -> bytes:
    """Hash what a request asks: its latest message and the fixed instructions; all before came of other steps.

    Instructions that functions make are left out: they may tell the time, and a request is not another one for that.
    """
    _, messages, _, parameters, _ = cache_key
    assert isinstance(messages, Sequence)  # noqa: S101 - for the type checker
    assert isinstance(parameters, ModelRequestParameters)  # noqa: S101 - for the type checker
    fixed = [part.content for part in parameters.instruction_parts or () if not part.dynamic]
    return _hashed([[_parts_of(message) for message in messages[-1:]], fixed])


def _parts_of(message: ModelMessage) -> Any:  # noqa: ANN401 - JSON
    parts = to_jsonable_python(message.parts, fallback=repr, bytes_mode="base64", inf_nan_mode="constants")
    return [{name: value for name, value in part.items() if name not in _NOT_ASKED} for part in parts]


def _hashed(asked: object) -> bytes:
    plain = to_jsonable_python(asked, fallback=repr, bytes_mode="base64", inf_nan_mode="constants")
    return hashlib.sha256(to_json(_sorted(plain))).digest()


def _sorted(plain: Any) -> Any:  # noqa: ANN401 - JSON
    match plain:
        case dict():
            return {name: _sorted(plain[name]) for name in sorted(plain)}
        case list():
            return [_sorted(item) for item in plain]
        case str():
            return plain.encode("utf-8", "replace").decode()
        case _:
            return plain


def _tokens_of(response: Any) -> tuple[int, int]:  # noqa: ANN401 - a model's response as JSON
    usage = response.get("usage") or {}
    return int(usage.get("input_tokens") or 0), int(usage.get("output_tokens") or 0)


class TurnDurability(BaseDurabilityCapability[Any]):
    """Has model requests and tool calls of one agent be steps, within `recorded_in`. Bound to its agent once."""

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="teamturn",
        durable_unit_noun="step",
        durable_container_noun="turn",
        codec=JSON_CODEC,
        journal_discovery=False,
        tool_config_key=CONFIG_KEY,
    )

    def __init__(self, model: Model | None = None) -> None:
        """`model` is that of an agent which has none of its own."""
        super().__init__(name=_NAME)
        self._model = model
        self._backend = _JournalBackend()

    @override
    def for_agent(self, agent: AbstractAgent[Any, Any]) -> AbstractCapability[Any]:
        return self if self.agent is agent else super().for_agent(agent)

    @override
    async def for_run(self, ctx: RunContext[Any]) -> TurnDurability:
        run = copy.copy(self)
        run._models_by_id = dict(self._models_by_id)  # noqa: SLF001 - a copy of this
        return run

    @property
    @override
    def in_durable_context(self) -> bool:
        return _steps.get() is not None

    @override
    def _effective_event_stream_handler(self) -> EventStreamHandler[Any] | None:
        # Of the answer that is asked for: what is recorded is not told again.
        return tell_all if is_watched() else None

    @override
    async def wrap_run_event_stream(
        self, ctx: RunContext[Any], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterator[AgentStreamEvent]:
        async for event in stream:
            if not isinstance(event, PartStartEvent | PartDeltaEvent):
                tell(event)
            yield event

    @override
    def get_durable_operation_backend(self) -> DurableOperationBackend[Any]:
        return self._backend

    @override
    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> None:
        # TurnHooks does it, by `as_steps`: the state's lock must be held within a step.
        return None

    def as_steps(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """Return a toolset whose calls are steps."""
        return _AsSteps(toolset, self._build_function_toolset)

    @override
    def _bind_to_agent(self, agent: AbstractAgent[Any, Any]) -> None:
        # Toolsets need no ids here, nor to be known before: a call is known by its id.
        pass

    @override
    def _bind_models(self, agent: AbstractAgent[Any, Any]) -> None:
        model = agent.model if isinstance(agent, Agent) and isinstance(agent.model, Model) else self._model
        self._models_by_id = {} if model is None else {"default": model}

    @override
    def _find_model_id(self, model: Model) -> str | None:
        # In one process any model can be found again, one that a capability put in its place too.
        registered, model_id = self._registered_model_id(model)
        if registered:
            return model_id
        model_id = f"{model.model_id}#{len(self._models_by_id)}"
        self._models_by_id[model_id] = model
        return model_id

    @override
    async def _resolve_model_for_request(self, model_id: str | None, run_context: RunContext[Any]) -> Model:
        known = self._models_by_id.get(model_id or "default")
        return known or await super()._resolve_model_for_request(model_id, run_context)


@dataclass
class _AsSteps(WrapperToolset[Any]):
    """A toolset whose calls are operations of the durable engine, whatever replaces it for a run or a step of one."""

    operations: Callable[[Any], AbstractToolset[Any]]

    @override
    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        metadata = tool.tool_def.metadata or {}
        if ctx.tool_call_approved and metadata.get(CONFIG_KEY) is False:
            # Who approved it approved one call: it is a step, though others of this tool are none.
            journalled = {key: value for key, value in metadata.items() if key != CONFIG_KEY}
            tool = replace(tool, tool_def=replace(tool.tool_def, metadata=journalled))
        return await self.operations(self.wrapped).call_tool(name, tool_args, ctx, tool)
