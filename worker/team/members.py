"""Members: who they are, and a member's run within a team's turn."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import JsonValue
from pydantic_ai.models import Model

from schemas.ids import SessionType, Target
from schemas.replies import RunStatus
from schemas.requests import Input
from worker.cancellation import was_cancelled
from worker.errors import ExecutorFailed, TurnFailed
from worker.executors.arguments import target_of
from worker.executors.json_values import as_json
from worker.executors.pauses import Pending, RunPaused
from worker.executors.turn import MemberRun, Turn, text_of
from worker.team.agent_run import AgentRunner, AnyAgent, checked_model
from worker.team.budget import Budget
from worker.team.history import prompt

_RUN_IDS: Final = uuid.UUID("5f0e7d38-0f0b-5c62-9d2e-3c1a1f1f6a01")
"""The namespace of members' run_ids."""

_log = structlog.get_logger()

Answer = Callable[[Input, Turn, Budget], Awaitable[JsonValue]]
"""Give a member its task, the turn as it takes part in it, and the turn's budget; get its answer."""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who can be given a task within a turn."""

    target: Target
    name: str
    description: str | None
    answer: Answer


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a team, by id, and how they take part in its turns."""

    by_id: dict[str, Member]
    see_history: bool
    """Whether they are shown the session's last runs, as the leader is."""
    may_fail: bool
    """Whether a member's failure is told to the leader; else it ends the turn."""

    async def run(self, member_id: str, task: Input, leader: Turn, budget: Budget, *, call: str) -> MemberRun:
        """Have a member do a task, and return its run, which is kept with the leader's.

        `call` is the same in every attempt of the turn, and makes the run's id. Raises TurnFailed if the member failed.
        """
        member = self.by_id[member_id]
        return await self._finished(member, begun_run(leader, member.target, member.name, task, call), leader, budget)

    async def run_all(self, task: Input, leader: Turn, budget: Budget, *, call: str) -> list[MemberRun]:
        """Have every member do the same task, side by side; the runs are in the members' order."""
        begun = [
            (member, begun_run(leader, member.target, member.name, task, f"{call}/{member_id}"))
            for member_id, member in self.by_id.items()
        ]
        return await together([self._finished(member, run, leader, budget) for member, run in begun])

    async def _finished(self, member: Member, run: MemberRun, leader: Turn, budget: Budget) -> MemberRun:
        part = leader.part(f"{member.target.id}[{run.origin_id[:8]}]", run)
        if not self.see_history:
            part.history, part.summary = (), None
        if self.may_fail and (failure := part.steps.failure_before()) is not None:
            # The leader was told of it: what it was asked next is recorded with that.
            run.status, run.error = RunStatus.ERROR, failure
            return run
        try:
            await finish(run, member, part, budget)
        except TurnFailed as error:
            # A limit of the whole turn's, or of this team's, leaves the leader nothing to go on with.
            if not self.may_fail or budget.exceeded:
                raise
            _log.warning("member_failed", member=str(member.target), code=error.code.value, reason=error.message)
            await part.steps.keep_failure(error)
        return run


def begun_run(parent: Turn, target: Target, name: str, given: Input, call: str) -> MemberRun:
    """Add a run that begins now to those of the turn, and return it. `call` makes its id."""
    run_id, origin_id = _new_run_ids(parent, call)
    run = MemberRun(
        run_id=run_id,
        parent_run_id=parent.run_id,
        member=target,
        name=name,
        input=given,
        created_at=int(time.time()),
        origin_id=origin_id,
    )
    parent.member_runs.append(run)
    return run


async def finish(run: MemberRun, member: Member, part: Turn, budget: Budget) -> None:
    """Have a member do what its run is for; the run says how it ended. Raises TurnFailed if the member failed."""
    part.tell("member_started", member_id=member.target.id, parent_run_id=run.parent_run_id)
    try:
        run.content = as_json(await member.answer(run.input, part, budget), what=f"the answer of {member.target}")
        run.status = RunStatus.COMPLETED
    except GeneratorExit:
        raise
    except RunPaused as paused:
        run.status = RunStatus.PAUSED
        raise RunPaused([_of_member(member, one) for one in paused.pending]) from None
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and was_cancelled():
            run.content = "".join(part.written) or None
            raise
        # Whatever else it is: sys.exit(), or the cancellation of something that it awaited.
        run.status = RunStatus.ERROR
        run.error = failure_of(str(member.target), error)
        raise run.error from error
    finally:
        part.tell("member_finished", member_id=member.target.id, status=run.status.value)


def failure_of(what: str, error: BaseException) -> TurnFailed:
    """Return what the user's code, a member's or a step's, failed with, as something with a code."""
    if isinstance(error, TurnFailed):
        return error
    # The text may hold anything; the reply names the type only, and the log, which is redacted, all of it.
    _log.error("executor_failed", target=what, exc_info=error)
    return ExecutorFailed(f"{what} raised {type(error).__name__}")


def _of_member(member: Member, pending: Pending) -> Pending:
    """Return what a member's run waits for; what one below it waits for says whose it is."""
    approval = pending.approval
    if approval.member_id is not None:
        return pending
    return pending.model_copy(update={"approval": approval.model_copy(update={"member_id": member.target.id})})


async def together(running: Sequence[Coroutine[Any, Any, MemberRun]]) -> list[MemberRun]:
    """Await runs side by side; the first that fails ends the others, and is raised.

    One that pauses doesn't end them: all that they wait for is raised together when the others have ended.
    """
    # Not a TaskGroup: in Python 3.11 and 3.12 one that fails leaves its caller's task marked as cancelled.
    tasks = [asyncio.create_task(_or_pending(one)) for one in running]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        ended = [task.result() for task in tasks]
        pending = [one for paused in ended if isinstance(paused, tuple) for one in paused]
        if pending:
            raise RunPaused(pending)
        return [run for run in ended if isinstance(run, MemberRun)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _or_pending(running: Coroutine[Any, Any, MemberRun]) -> MemberRun | tuple[Pending, ...]:
    try:
        return await running
    except RunPaused as paused:
        return paused.pending


def told(runs: Sequence[MemberRun]) -> str:
    """Return what members answered, each under its id, for a leader to read."""
    return "\n".join(f'<answer member="{run.member.id}">\n{answer_of(run)}\n</answer>' for run in runs)


def answer_of(run: MemberRun) -> str:
    """Return what a member answered, or that it failed, for a leader to read."""
    if run.error is not None:
        return f"This member has failed: {run.error.message}."
    return text_of(run.content)


def agent_member(where: str, agent: AnyAgent, model: Model | None, model_retries: int) -> Member:
    """Return a pydantic-ai agent as a member; `model` is for one that has none.

    Raises ValueError, beginning with `where`, for what can't be.
    """
    if not agent.name:
        raise ValueError(f"{where} has no name; give the Agent one: Agent(name=…)")
    if checked_model(agent) is None and model is None:
        raise ValueError(f"{where}, {agent.name!r}, has no model")
    runner = AgentRunner(agent, model=model, model_retries=model_retries)

    async def answer(task: Input, part: Turn, budget: Budget) -> JsonValue:
        output: JsonValue = await runner.run(prompt(task), part, budget)
        return output

    return Member(
        target=target_of(SessionType.AGENT, agent.name, f"{where}: the name {agent.name!r}"),
        name=agent.name,
        description=str(agent.description) if agent.description else None,
        answer=answer,
    )


def _new_run_ids(leader: Turn, call: str) -> tuple[str, str]:
    """Return an id that is the same in every attempt: the call's id is in the leader's recorded answer.

    Nobody can take it first who knows only the request's run_id. Some providers use a call's id again within a run; its
    uses are counted. The second is what it was when the turn was begun that this one goes on with.
    """
    taken = {run.run_id for run in leader.member_runs}
    for use in itertools.count():
        run_id = _run_id(leader.id_seed, leader.run_id, call, use)
        if run_id not in taken:
            origin = leader.origin
            return run_id, run_id if origin is None else _run_id(origin.id_seed, leader.origin_id, call, use)
    raise AssertionError("itertools.count ended")


def _run_id(seed: str, leader: str, call: str, use: int) -> str:
    return str(uuid.uuid5(_RUN_IDS, f"{seed}/{leader}/{call}#{use}"))


def members_first(runs: Sequence[MemberRun]) -> list[MemberRun]:
    """Return member runs so that each comes after those below it: readers expect a member's index to be lower."""
    below: dict[str, list[MemberRun]] = {}
    for run in runs:
        below.setdefault(run.parent_run_id, []).append(run)
    known = {run.run_id for run in runs}

    def placed(run: MemberRun) -> list[MemberRun]:
        return [*(inner for child in below.get(run.run_id, ()) for inner in placed(child)), run]

    return [inner for run in runs if run.parent_run_id not in known for inner in placed(run)]
