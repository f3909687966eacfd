"""One run of one pydantic-ai agent within a turn: a leader's, a member's, a workflow step's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_ai import Agent, capture_run_messages
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import FunctionToolset

from worker.executors.turn import Turn
from worker.team.budget import Budget
from worker.team.durability import TurnDurability, recorded_in
from worker.team.failures import translated_failures
from worker.team.history import Prompt, history_messages
from worker.team.hooks import TurnHooks
from worker.team.session_context import SessionContext
from worker.team.streaming import told_of
from worker.team.transcript import transcript

AnyAgent = Agent[Any, Any]
"""A pydantic-ai Agent, of any dependencies and output; the dependencies it is run with are the Turn."""

DEFAULT_MODEL_RETRIES: Final = 3


@dataclass(frozen=True, slots=True)
class AgentRunner:
    """An agent as a turn runs it. It keeps nothing of a turn."""

    agent: AnyAgent
    model: Model | None = None
    """The model of an agent that has none of its own."""
    model_retries: int = DEFAULT_MODEL_RETRIES
    context: SessionContext = field(default_factory=SessionContext)
    """What of the session its model is told."""
    durability: TurnDurability = field(init=False)

    def __post_init__(self) -> None:
        durability = TurnDurability(self.model).for_agent(self.agent)
        assert isinstance(durability, TurnDurability)  # noqa: S101 - for the type checker
        object.__setattr__(self, "durability", durability)

    async def run(self, prompt: Prompt, turn: Turn, budget: Budget) -> Any:  # noqa: ANN401 - of the agent's output type
        """Run it and return its output. `turn.messages` has what was said, however it ends.

        Raises TurnFailed for what a provider, a tool or a limit is at fault for.
        """
        history = history_messages(turn.history)
        surroundings = (translated_failures(), budget.spent_here(), recorded_in(turn.steps), told_of(turn))
        with capture_run_messages() as said, ExitStack() as stack:
            for one in surroundings:
                stack.enter_context(one)
            try:
                result = await self.agent.run(
                    prompt,
                    message_history=history or None,
                    deps=turn,
                    conversation_id=turn.session_id,
                    usage=budget.usage,
                    usage_limits=budget.limits,
                    model=self.model if self.agent.model is None else None,
                    model_settings=self._settings(),
                    instructions=self.context.instructions(),
                    toolsets=self._toolsets(),
                    capabilities=self._capabilities(turn),
                    infer_name=False,
                )
            finally:
                turn.messages[:] = transcript(_new(said, history))
        return result.output

    def _capabilities(self, turn: Turn) -> list[AbstractCapability[Any]]:
        if not turn.steps.journal.kept:
            return [TurnHooks(self.model_retries)]
        return [TurnHooks(self.model_retries, self.durability.as_steps), self.durability]

    def _settings(self) -> ModelSettings | None:
        return without_own_retries(self.agent.model if isinstance(self.agent.model, Model) else self.model)

    def _toolsets(self) -> list[FunctionToolset[Turn]] | None:
        tools = self.context.tools()
        return [FunctionToolset(tools)] if tools else None


def without_own_retries(model: Model | None) -> ModelSettings | None:
    """Return the settings by which a model makes no request again by itself, if it would.

    One layer of retries, with one back-off, is the TurnHooks'; the clients of some providers have one of their own.
    """
    return ModelSettings(max_retries=0) if model is not None and _has_retries_to_turn_off(model) else None


def _has_retries_to_turn_off(model: Model) -> bool:
    while isinstance(model, WrapperModel):
        model = model.wrapped
    return "max_retries" not in model.unsupported_settings


def _new(said: Sequence[ModelMessage], history: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
    return said[len(history) :]


def checked_model(agent: AnyAgent) -> Model | None:
    """Return the agent's model, if it has one. Raises what pydantic-ai does for a wrong name or a missing key."""
    # With `defer_model_check` a name is kept until the first run; a worker finds out when it starts.
    return None if agent.model is None else infer_model(agent.model)


def model_name_of(model: Model | None) -> str | None:
    """Return a model's name as provider:model."""
    return None if model is None else f"{model.system}:{model.model_name}"
