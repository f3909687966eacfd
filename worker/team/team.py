"""`Team`: a leader model with members, as a turn is taken by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import JsonValue, ValidationError
from pydantic_ai import Agent, Tool
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from schemas.ids import SessionType, Target
from worker.executors.turn import Turn
from worker.team.delegation import Member, delegation_tool, members_first, members_prompt
from worker.team.failures import translated_failures
from worker.team.history import history_messages, prompt

AnyAgent = Agent[Any, Any]


class Team:
    """A leader model and the members it can give tasks to.

    `id`: what requests name it by (`team_id`). `model`: any model that pydantic-ai knows, by name or as an object; a
    wrong name or a missing key is an error here, not in a turn. `members`: pydantic-ai Agents, each with a name of its
    own, or Teams. `mode="coordinate"`: the leader gives members tasks by a tool call, then answers. `instructions`:
    for the leader. `history_runs`: how many completed runs of the session the leader is shown; None: all, 0: none.
    `tools`: pydantic-ai tools of the leader; `model_settings`: such as {"temperature": 0}.

    A Team holds no state of any turn: one object serves any number at once. Raises ValueError for what can't be.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's word
        model: Model | str,
        *,
        members: Sequence[AnyAgent | Team] = (),
        mode: Literal["coordinate"] = "coordinate",
        instructions: str | None = None,
        history_runs: int | None = 3,
        name: str | None = None,
        description: str | None = None,
        tools: Sequence[Tool[Any]] = (),
        model_settings: ModelSettings | None = None,
    ) -> None:
        self.target = _target(SessionType.TEAM, id, f"team id {id!r}")
        if mode != "coordinate":
            raise ValueError(f"team {id!r}: mode {mode!r} is not supported yet; use 'coordinate'")
        if history_runs is not None and history_runs < 0:
            raise ValueError(f"team {id!r}: history_runs is None or 0 and more, not {history_runs}")
        self.name = name or id
        self.description = description
        self.history_runs = history_runs
        self._members = _members_of(id, members)
        own_tools = [delegation_tool(self._members)] if self._members else []
        self._leader: Agent[Turn, str] = Agent(
            model,
            name=id,
            deps_type=Turn,
            instructions=[text for text in (instructions, self._team_prompt()) if text],
            tools=[*own_tools, *tools],
            model_settings=model_settings,
        )

    @property
    def model_name(self) -> str | None:
        """The leader's model, as provider:model."""
        model = self._leader.model
        return f"{model.system}:{model.model_name}" if isinstance(model, Model) else None

    async def run(self, turn: Turn) -> JsonValue:
        """Take a turn: the leader is shown the session's last runs and the input, and answers."""
        usage = RunUsage()
        try:
            with translated_failures():
                result = await self._leader.run(
                    prompt(turn.parts),
                    message_history=history_messages(turn.history),
                    deps=turn,
                    usage=usage,
                    infer_name=False,
                )
        finally:
            # Also of a turn that failed: its tokens were spent.
            turn.usage.input_tokens += usage.input_tokens
            turn.usage.output_tokens += usage.output_tokens
            turn.usage.model_requests += usage.requests
            turn.usage.tool_calls += usage.tool_calls
            turn.member_runs[:] = members_first(turn.member_runs)
        return result.output

    async def take_task(self, task: str, turn: Turn, usage: RunUsage) -> JsonValue:
        """Do a task as a member of another team, within its turn."""
        result = await self._leader.run(task, deps=turn, usage=usage, infer_name=False)
        return result.output

    def _team_prompt(self) -> str | None:
        return members_prompt(self._members) if self._members else None


def _members_of(team_id: str, members: Sequence[AnyAgent | Team]) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for number, member in enumerate(members, start=1):
        made = _team_member(member) if isinstance(member, Team) else _agent_member(team_id, number, member)
        if made.target.id in found:
            raise ValueError(f"team {team_id!r}: two members are called {made.target.id!r}")
        found[made.target.id] = made
    return found


def _team_member(team: Team) -> Member:
    return Member(target=team.target, name=team.name, description=team.description, run=team.take_task)


def _agent_member(team_id: str, number: int, agent: AnyAgent) -> Member:
    if not isinstance(agent, Agent):
        raise ValueError(  # noqa: TRY004 - what can't be is a ValueError, as everywhere in Team
            f"team {team_id!r}: member {number} is {type(agent).__name__}, not a pydantic-ai Agent or a Team"
        )
    if not agent.name:
        raise ValueError(f"team {team_id!r}: member {number} has no name; give the Agent one: Agent(name=…)")
    if agent.model is None:
        raise ValueError(f"team {team_id!r}: the member {agent.name!r} has no model")

    async def run(task: str, turn: Turn, usage: RunUsage) -> JsonValue:
        result = await agent.run(task, deps=turn, usage=usage, infer_name=False)
        output: JsonValue = result.output
        return output

    return Member(
        target=_target(SessionType.AGENT, agent.name, f"team {team_id!r}: the member's name {agent.name!r}"),
        name=agent.name,
        description=str(agent.description) if agent.description else None,
        run=run,
    )


def _target(kind: SessionType, target_id: str, what: str) -> Target:
    try:
        return Target(type=kind, id=target_id)
    except ValidationError as error:
        raise ValueError(f"{what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
