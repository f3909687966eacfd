"""`Team`: a leader model with members, as a turn is taken by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue
from pydantic_ai import Agent, AgentRetries, Tool
from pydantic_ai.agent import EndStrategy
from pydantic_ai.capabilities import AgentCapability
from pydantic_ai.concurrency import AnyConcurrencyLimit
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models import Model
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.output import OutputSpec
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolFuncEither
from pydantic_ai.toolsets import AgentToolset
from pydantic_ai.usage import UsageLimits

from schemas.ids import SessionType
from schemas.requests import Input
from worker.executors.pauses import DEFAULT_PAUSE_SECONDS, PauseRules, WhilePaused
from worker.executors.turn import Turn
from worker.team.agent_run import (
    DEFAULT_MODEL_RETRIES,
    AgentRunner,
    AnyAgent,
    model_name_of,
)
from worker.team.arguments import check_agent, check_tool_names, checked_target, made, model_of
from worker.team.budget import Budget
from worker.team.failures import UNREADABLE, UNSUITABLE
from worker.team.history import prompt
from worker.team.limits import TurnLimits, within_limits, within_part
from worker.team.members import Member, Members, agent_member
from worker.team.modes import Mode, broadcast, delegation_tools, route, route_output, team_prompt
from worker.team.session_context import Instructions, SessionContext, as_instructions
from worker.team.summary import SessionSummary


class Team:
    """A leader model and its members, as something that can take turns.

    A Team holds no state of any turn: one object serves any number at once. Raises ValueError for what can't be, models
    of a wrong name or without a key among it: at the start, not in a turn.

    Args:
        id: What requests name it by: `team_id`.
        model: The leader's model: any that pydantic-ai knows, by name or as an object.
        members: pydantic-ai Agents, each with a name of its own, or Teams. An Agent without a model uses the leader's.
            A Team has its own limits, retries and session_state within those of the turn; history and summary are the
            turn's.
        mode: "coordinate": the leader gives tasks to one member or to all, by tool calls, and answers from what
            they found. "route": the leader chooses one member, whose answer is the answer. "broadcast": every member
            is given the input, in parallel, and the leader sums up.
        name: What people call it; the id by default.
        description: What it is good for; a leader above it is told.
        instructions: For the leader: text, or a function of the Turn that returns text, or several of them. A function
            may be async, and may take pydantic-ai's RunContext[Turn] instead.
        tools: The leader's tools: functions or pydantic-ai Tools. `RunContext.deps` is the Turn.
        toolsets: The leader's pydantic-ai toolsets, MCPToolset among them. Turns that run at once share a toolset, and
            an MCPToolset's connection to its server; where a server keeps something of those it serves, give a function
            that returns a new one: `toolsets=[lambda context: MCPToolset(…)]`.
        output_type: What the leader answers with: any output of pydantic-ai, a pydantic model among them; it becomes
            JSON in the reply. Not in mode "route", where a member answers.
        model_settings: pydantic-ai's ModelSettings of the leader: temperature, max_tokens, request_timeout, ….
        usage_limits: pydantic-ai's UsageLimits of a whole turn, members included: requests, tokens, tool calls, cost
            in USD. By default 50 requests. Reached, the turn ends as `usage_limit_exceeded`.
        retries: How often the leader may try again after a tool call or an output that does not validate; pydantic-ai's
            AgentRetries tells the two apart.
        model_retries: How often a request to a model that failed for a passing reason (429, 5xx, no connection) is
            made again, with back-off, or after the time that the provider asks for, up to 60 s. For members as well.
        fallback_models: Models that are asked when the leader's fails, in order.
        model_concurrency: How many requests to the leader's model are under way at once in a worker process: a number,
            or a pydantic-ai ConcurrencyLimiter, which several teams can share.
        timeout: Seconds that a turn may take; TEAMTURN_TURN_TIMEOUT is the limit above it. Exceeded, the turn ends as
            `turn_timeout`.
        tool_timeout: Seconds that a call of one of the leader's tools may take; the model is told of a later one. A
            function that is not async can't be stopped: it goes on in its thread, and what it changes then may be lost.
        end_strategy: pydantic-ai's, for tool calls that come together with a final output.
        capabilities: pydantic-ai capabilities of the leader.
        history_runs: How many completed runs of the session the leader is shown; None: all, 0: none.
        add_history_to_members: Whether members are shown them, too; by default in mode "route" only.
        tolerate_member_failures: Whether a member's failure is told to the leader. By default it ends the turn, as a
            usage limit of the team or of the turn always does.
        session_state: Keys that the session's state always has: one that is missing when a turn begins is set to this.
        add_session_state_to_context: Whether the leader is shown the session's state.
        enable_agentic_state: Whether the leader has the tool `update_session_state`.
        journal: Whether the steps of its turns (model requests and tool calls, members' included) are recorded, so that
            another attempt of a turn whose worker died does not make them again.
        session_summary: Whether a summary of the session is written after its turns, and shown to the leader instead
            of the runs before the history: True, or a SessionSummary.
        while_paused: What happens to a session's other requests while a run of it waits for somebody to approve a tool
            call: "accept": they are taken; "refuse": they are refused as `session_paused`.
        pause_timeout: Seconds that such a run waits; continued later, it is `pause_expired`. By default a week.

    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's word
        model: Model | str,
        *,
        members: Sequence[AnyAgent | Team] = (),
        mode: Mode = "coordinate",
        name: str | None = None,
        description: str | None = None,
        instructions: Instructions = None,
        tools: Sequence[Tool[Turn] | ToolFuncEither[Turn, ...]] = (),
        toolsets: Sequence[AgentToolset[Turn]] = (),
        output_type: OutputSpec[Any] = str,
        model_settings: ModelSettings | None = None,
        usage_limits: UsageLimits | None = None,
        retries: int | AgentRetries | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
        fallback_models: Sequence[Model | str] = (),
        model_concurrency: AnyConcurrencyLimit = None,
        timeout: float | None = None,
        tool_timeout: float | None = None,
        end_strategy: EndStrategy = "graceful",
        capabilities: Sequence[AgentCapability[Turn]] = (),
        history_runs: int | None = 3,
        add_history_to_members: bool | None = None,
        tolerate_member_failures: bool = False,
        session_state: Mapping[str, Any] | None = None,
        add_session_state_to_context: bool = False,
        enable_agentic_state: bool = False,
        journal: bool = True,
        session_summary: SessionSummary | bool = False,
        while_paused: WhilePaused = "accept",
        pause_timeout: float = DEFAULT_PAUSE_SECONDS,
    ) -> None:
        where = f"team {id!r}"
        self.target = checked_target(SessionType.TEAM, id, locals())
        self.name = name or id
        self.description = description
        self.history_runs = history_runs
        self.journal = journal
        self.pause_rules = PauseRules(while_paused, pause_timeout)
        self._mode = mode
        self._limits = TurnLimits.of(usage_limits, timeout, session_state)
        answering = _model(where, model, fallback_models, model_concurrency)
        see_history = mode == "route" if add_history_to_members is None else add_history_to_members
        self._members = Members(
            _members_of(where, members, answering, model_retries),
            see_history=see_history,
            may_fail=tolerate_member_failures,
        )
        _check_mode(where, mode, self._members, output_type)
        by_id = self._members.by_id
        context = SessionContext(state_shown=add_session_state_to_context, state_tool=enable_agentic_state)
        delegation = delegation_tools(self._members) if mode == "coordinate" else []
        check_tool_names(where, [*delegation, *context.tools()], tools, toolsets)
        # Any: there are too many kinds of tools for mypy to try.
        all_tools: list[Any] = [*delegation, *tools]
        leader: Agent[Turn, Any] = made(
            where,
            lambda: Agent(
                answering,
                name=id,
                deps_type=Turn,
                output_type=route_output(by_id) if mode == "route" else output_type,
                instructions=[*as_instructions(instructions), *team_prompt(mode, by_id)],
                tools=all_tools,
                toolsets=toolsets,
                model_settings=model_settings,
                retries=retries,
                tool_timeout=tool_timeout,
                end_strategy=end_strategy,
                capabilities=capabilities,
            ),
        )
        self._leader = AgentRunner(leader, model_retries=model_retries, context=context)
        self.model_name = model_name_of(answering)
        self.summarizer = SessionSummary.of(where, session_summary, answering)

    async def run(self, turn: Turn) -> JsonValue:
        """Take a turn, in the team's mode."""
        answer: JsonValue = await within_limits(
            self._limits, turn, lambda budget: self._answer(turn.parts, turn, budget)
        )
        return answer

    async def take_task(self, task: Input, part: Turn, budget: Budget) -> JsonValue:
        """Do a task as a member of another team, or as a step of a workflow, within its turn."""
        answer: JsonValue = await within_part(
            self._limits, str(self.target), part, budget, lambda own: self._answer(task, part, own)
        )
        return answer

    async def _answer(self, given: Input, turn: Turn, budget: Budget) -> Any:  # noqa: ANN401 - of the team's output type
        match self._mode:
            case "route":
                return await route(self._leader, self._members, given, turn, budget)
            case "broadcast":
                return await broadcast(self._leader, self._members, given, turn, budget)
            case "coordinate":
                return await self._leader.run(prompt(given), turn, budget)


def _model(where: str, model: Model | str, fallbacks: Sequence[Model | str], concurrency: AnyConcurrencyLimit) -> Model:
    found = model_of(where, "model", model)
    if concurrency is not None:
        found = ConcurrencyLimitedModel(found, concurrency)
    others = [model_of(where, f"fallback_models[{number}]", other) for number, other in enumerate(fallbacks)]
    return FallbackModel(found, *others, fallback_on=(ModelAPIError, *UNREADABLE, *UNSUITABLE)) if others else found


def _check_mode(where: str, mode: Mode, members: Members, output_type: object) -> None:
    if mode != "coordinate" and not members.by_id:
        raise ValueError(f"{where}: mode {mode!r} needs members")
    if mode == "route" and output_type is not str:
        raise ValueError(f"{where}: in mode 'route' a member answers; give the members an output_type")


def _members_of(where: str, members: Sequence[AnyAgent | Team], model: Model, model_retries: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for number, member in enumerate(members, start=1):
        if isinstance(member, Team):
            one = Member(member.target, member.name, member.description, member.take_task)
        elif isinstance(member, Agent):
            check_agent(f"{where}: member {number}", member)
            one = agent_member(f"{where}: member {number}", member, model, model_retries)
        else:
            raise ValueError(  # noqa: TRY004 - what can't be is a ValueError, as everywhere in Team
                f"{where}: member {number} is {type(member).__name__}, not a pydantic-ai Agent or a Team"
            )
        if one.target.id in found:
            raise ValueError(f"{where}: two members are called {one.target.id!r}")
        found[one.target.id] = one
    return found
