"""Delegation: the tool by which a leader gives a member a task, and the runs that come of it."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import JsonValue
from pydantic_ai import ModelRetry, RunContext, Tool
from pydantic_ai.usage import RunUsage

from schemas.ids import Target
from schemas.replies import RunStatus
from worker.executors.json_values import as_json
from worker.executors.turn import MemberRun, Turn, text_of

_RUN_IDS: Final = uuid.UUID("5f0e7d38-0f0b-5c62-9d2e-3c1a1f1f6a01")
"""The namespace of members' run_ids."""


RunMember = Callable[[str, Turn, RunUsage], Awaitable[JsonValue]]
"""Give a member its task, the turn under the member's own run_id, and the turn's usage; get its answer."""


@dataclass(frozen=True)
class Member:
    """Somebody whom the leader can give a task."""

    target: Target
    name: str
    description: str | None
    run: RunMember


def members_prompt(members: Mapping[str, Member]) -> str:
    """Return what the leader is told about its team."""
    lines = [f"- {member_id}: {member.description or member.name}" for member_id, member in members.items()]
    return "\n".join(
        [
            "You lead a team. Its members, by id:",
            *lines,
            "Give members tasks with the tool delegate_task: they see nothing of this conversation but the task.",
            "Then answer yourself, from what they found. Answer directly where you need no member.",
        ]
    )


def delegation_tool(members: Mapping[str, Member]) -> Tool[Turn]:
    """Return the tool `delegate_task(member_id, task)`, whose result is the member's answer."""

    async def delegate_task(context: RunContext[Turn], member_id: str, task: str) -> str:
        """Give a member of your team a task, and get its answer.

        Args:
            context: The leader's turn.
            member_id: The member's id.
            task: Everything that the member needs to know to do it.

        """
        member = members.get(member_id)
        if member is None:
            raise ModelRetry(f"there is no member {member_id!r}; the members are {', '.join(members)}")
        return text_of(await _member_run(member, task, context))

    return Tool(delegate_task)


async def _member_run(member: Member, task: str, context: RunContext[Turn]) -> JsonValue:
    leader = context.deps
    run = MemberRun(
        run_id=_new_run_id(leader, context.tool_call_id or ""),
        parent_run_id=leader.run_id,
        member=member.target,
        name=member.name,
        input=task,
        created_at=int(time.time()),
    )
    leader.member_runs.append(run)
    try:
        # The same turn, and its state, under the member's own run_id.
        answer = await member.run(task, replace(leader, run_id=run.run_id, input=task), context.usage)
        run.content = as_json(answer, what=f"the answer of {member.target}")
        run.status = RunStatus.COMPLETED
    except Exception:
        run.status = RunStatus.ERROR
        raise
    return run.content


def _new_run_id(leader: Turn, call_id: str) -> str:
    """Return an id that is the same in every attempt: the call's id is in the leader's recorded answer.

    Some providers use an id again within a run; its uses are counted.
    """
    taken = {run.run_id for run in leader.member_runs}
    for use in itertools.count():
        run_id = str(uuid.uuid5(_RUN_IDS, f"{leader.run_id}/{call_id}#{use}"))
        if run_id not in taken:
            return run_id
    raise AssertionError("itertools.count ended")


def members_first(runs: Sequence[MemberRun]) -> list[MemberRun]:
    """Return member runs so that each comes after those below it: readers expect a member's index to be lower."""
    below: dict[str, list[MemberRun]] = {}
    for run in runs:
        below.setdefault(run.parent_run_id, []).append(run)
    known = {run.run_id for run in runs}

    def placed(run: MemberRun) -> list[MemberRun]:
        return [*(inner for child in below.get(run.run_id, ()) for inner in placed(child)), run]

    return [inner for run in runs if run.parent_run_id not in known for inner in placed(run)]
