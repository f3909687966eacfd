"""The three ways in which a leader and its members take a turn together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic_ai import ModelRetry, RunContext, Tool
from pydantic_ai.output import ToolOutput

from schemas.requests import Input
from worker.executors.turn import Turn
from worker.team.agent_run import AgentRunner
from worker.team.approvals import or_deferred
from worker.team.budget import Budget
from worker.team.history import prompt, with_text
from worker.team.members import Member, Members, answer_of, told
from worker.team.toolsets import DELEGATES

Mode = Literal["coordinate", "route", "broadcast"]
"""How a leader and its members take a turn together."""

_COORDINATE: Final = (
    "Give a member a task with the tool delegate_task, or all of them the same one with delegate_to_all. They see "
    "nothing of this conversation but the task. Then answer yourself, from what they found. Answer directly where you "
    "need no member."
)
_ROUTE: Final = (
    "Choose the one member who answers best, with the tool route_to_member. The member is given the request as it is, "
    "and the member's answer is the team's."
)
_BROADCAST: Final = "Each member has answered the request below. Sum their answers up in one of your own."


def team_prompt(mode: Mode, members: Mapping[str, Member]) -> list[str]:
    """Return what the leader is told about its team, if it has one."""
    if not members:
        return []
    lines = [f"- {member_id}: {member.description or member.name}" for member_id, member in members.items()]
    told_to_do = {"coordinate": _COORDINATE, "route": _ROUTE, "broadcast": _BROADCAST}[mode]
    return ["\n".join(["You lead a team. Its members, by id:", *lines, told_to_do])]


def delegation_tools(members: Members) -> list[Tool[Turn]]:
    """Return the tools by which a leader that coordinates gives its members tasks; their results are the answers."""

    async def delegate_task(context: RunContext[Turn], member_id: str, task: str) -> str:
        """Give a member of your team a task, and get its answer.

        Args:
            context: The leader's turn.
            member_id: The member's id.
            task: Everything that the member needs to know to do it.

        """
        if member_id not in members.by_id:
            raise ModelRetry(_no_such_member(member_id, members.by_id))
        call = context.tool_call_id or ""
        run = await or_deferred(members.run(member_id, task, context.deps, _budget(context), call=call))
        return answer_of(run)

    async def delegate_to_all(context: RunContext[Turn], task: str) -> str:
        """Give every member of your team the same task at once, and get all their answers.

        Args:
            context: The leader's turn.
            task: Everything that the members need to know to do it.

        """
        call = context.tool_call_id or ""
        runs = await or_deferred(members.run_all(task, context.deps, _budget(context), call=call))
        return told(runs)

    # The leader's tool_timeout is for its tools; members have their own time.
    given: dict[str, Any] = {"metadata": {DELEGATES: True}, "timeout": math.inf}
    return [Tool(tool, **given) for tool in (delegate_task, delegate_to_all)] if members.by_id else []


def _no_such_member(member_id: str, members: Mapping[str, Member]) -> str:
    return f"there is no member {member_id!r}; the members are {', '.join(members)}"


def _budget(context: RunContext[Turn]) -> Budget:
    return Budget.current() or Budget(context.usage, context.usage_limits)


def route_output(members: Mapping[str, Member]) -> ToolOutput[Any]:
    """Return the output of a leader that routes: a choice of one member's id."""

    def route_to_member(member_id: str) -> str:
        """Choose the member who answers.

        Args:
            member_id: The member's id.

        """
        if member_id not in members:
            raise ModelRetry(_no_such_member(member_id, members))
        return member_id

    # Set here, since as an annotation it would be looked up where the members' names are not known.
    route_to_member.__annotations__["member_id"] = Annotated[str, Field(json_schema_extra={"enum": list(members)})]
    return ToolOutput(route_to_member, name=route_to_member.__name__)


async def route(leader: AgentRunner, members: Members, given: Input, turn: Turn, budget: Budget) -> Any:  # noqa: ANN401 - the member's output
    """Let the leader choose a member, who is given the input; its answer is the answer."""
    choice = await leader.run(prompt(given), turn, budget)
    run = await members.run(choice, given, turn, budget, call="route")
    if run.error is not None:
        raise run.error  # there is nobody else who could answer
    return run.content


async def broadcast(leader: AgentRunner, members: Members, given: Input, turn: Turn, budget: Budget) -> Any:  # noqa: ANN401 - the leader's output
    """Give every member the input at once; then the leader sums up."""
    runs = await members.run_all(given, turn, budget, call="broadcast")
    return await leader.run(with_text(given, told(runs)), turn, budget)
