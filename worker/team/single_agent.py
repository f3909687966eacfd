"""`SingleAgent`: a pydantic-ai agent that takes turns by itself, named by `agent_id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from pydantic_ai import Agent
from pydantic_ai.usage import UsageLimits

from schemas.ids import SessionType
from worker.executors.pauses import DEFAULT_PAUSE_SECONDS, PauseRules, WhilePaused
from worker.executors.turn import Turn
from worker.team.agent_run import DEFAULT_MODEL_RETRIES, AgentRunner, AnyAgent, checked_model, model_name_of
from worker.team.arguments import check_agent, check_tool_names, checked_target
from worker.team.history import prompt
from worker.team.limits import TurnLimits, within_limits
from worker.team.session_context import SessionContext
from worker.team.summary import SessionSummary


class SingleAgent:
    """A pydantic-ai Agent, as something that can take turns. An Agent in TEAMTURN_TEAMS becomes one with the defaults.

    Tools and instructions of the agent get the Turn as `RunContext.deps`. Raises ValueError for what can't be.

    Args:
        agent: The pydantic-ai Agent, with a model.
        id: What requests name it by: `agent_id`; the agent's name by default.
        usage_limits: pydantic-ai's UsageLimits of a turn: requests, tokens, tool calls, cost in USD. By default 50
            requests. Reached, the turn ends as `usage_limit_exceeded`.
        model_retries: How often a request to the model that failed for a passing reason (429, 5xx, no connection) is
            made again, with back-off, or after the time that the provider asks for, up to 60 s.
        timeout: As for a Team.
        history_runs: As for a Team.
        session_state: As for a Team.
        add_session_state_to_context: As for a Team.
        enable_agentic_state: As for a Team.
        journal: As for a Team.
        session_summary: As for a Team.
        while_paused: As for a Team.
        pause_timeout: As for a Team.

    """

    def __init__(
        self,
        agent: AnyAgent,
        *,
        id: str | None = None,  # noqa: A002 - the field's word
        usage_limits: UsageLimits | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
        timeout: float | None = None,
        history_runs: int | None = 3,
        session_state: Mapping[str, Any] | None = None,
        add_session_state_to_context: bool = False,
        enable_agentic_state: bool = False,
        journal: bool = True,
        session_summary: SessionSummary | bool = False,
        while_paused: WhilePaused = "accept",
        pause_timeout: float = DEFAULT_PAUSE_SECONDS,
    ) -> None:
        if not isinstance(agent, Agent):
            raise ValueError(f"SingleAgent needs a pydantic-ai Agent, not {type(agent).__name__}")  # noqa: TRY004 - as in Team
        called = id or agent.name
        if not called:
            raise ValueError("an agent that requests can name needs a name: Agent(name=…), or SingleAgent(id=…)")
        where = f"agent {called!r}"
        self.target = checked_target(SessionType.AGENT, called, locals())
        check_agent(where, agent)
        self.name = agent.name or called
        self.history_runs = history_runs
        self.journal = journal
        self.pause_rules = PauseRules(while_paused, pause_timeout)
        model = checked_model(agent)
        if model is None:
            raise ValueError(f"{where} has no model")
        self._limits = TurnLimits.of(usage_limits, timeout, session_state)
        context = SessionContext(state_shown=add_session_state_to_context, state_tool=enable_agentic_state)
        check_tool_names(where, context.tools(), (), agent.toolsets)
        self._runner = AgentRunner(agent, model_retries=model_retries, context=context)
        self.model_name = model_name_of(model)
        self.summarizer = SessionSummary.of(where, session_summary, model)

    async def run(self, turn: Turn) -> JsonValue:
        """Take a turn."""
        answer: JsonValue = await within_limits(
            self._limits, turn, lambda budget: self._runner.run(prompt(turn.parts), turn, budget)
        )
        return answer
