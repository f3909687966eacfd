"""`Workflow`: named steps, one after the other, each of which sees the results before it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard

from pydantic import JsonValue
from pydantic_ai import Agent
from pydantic_ai.usage import UsageLimits

from schemas.ids import SessionType
from schemas.replies import RunStatus
from schemas.requests import Input, TextPart
from worker.executors.arguments import TEXT, check_one, takes
from worker.executors.json_values import as_json
from worker.executors.pauses import DEFAULT_PAUSE_SECONDS, PauseRules, WhilePaused
from worker.executors.turn import SharedSession, StepResult, Turn, text_of
from worker.team.agent_run import DEFAULT_MODEL_RETRIES, AnyAgent
from worker.team.arguments import check_agent, checked_target
from worker.team.budget import Budget
from worker.team.limits import TurnLimits, within_limits
from worker.team.members import Member, agent_member, begun_run, failure_of, finish
from worker.team.team import Team

StepFunction = Callable[[Turn], Awaitable[Any]]
"""An async function of the Turn, whose `results` are those of the steps before; it returns a JSON value."""


@dataclass(frozen=True)
class Step:
    """A step of a workflow.

    Args:
        name: What its result is known by: in `turn.results`, and as `member_id` in the reply's `member_responses`.
        runs: What does it: a pydantic-ai Agent, a Team, or an async function of the Turn that returns a JSON value.

    """

    name: str
    runs: AnyAgent | Team | StepFunction


class Workflow:
    """Named steps in order, as something that can take turns. The last step's result is the answer.

    An agent or a team is given the request's input and, after it, the results of the steps before; a function finds
    them in `turn.results`. All steps share the session's state. Raises ValueError for what can't be.

    Args:
        id: What requests name it by: `workflow_id`.
        steps: Steps, or what a step runs: it is then called by the agent's name, the team's id, the function's name.
        name: What people call it; the id by default.
        usage_limits: As for a Team: of all steps together.
        model_retries: How often a request of a step's agent is made again; a step's Team has its own.
        timeout: As for a Team.
        history_runs: How many completed runs of the session `turn.history` holds; None: all, 0: none.
        add_history_to_steps: Whether agents and teams are shown them.
        session_state: As for a Team.
        journal: As for a Team; `turn.step` in a function is a step as well.
        while_paused: As for a Team.
        pause_timeout: As for a Team.

    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's word
        steps: Sequence[Step | AnyAgent | Team | StepFunction],
        *,
        name: str | None = None,
        usage_limits: UsageLimits | None = None,
        model_retries: int = DEFAULT_MODEL_RETRIES,
        timeout: float | None = None,
        history_runs: int | None = 3,
        add_history_to_steps: bool = False,
        session_state: Mapping[str, Any] | None = None,
        journal: bool = True,
        while_paused: WhilePaused = "accept",
        pause_timeout: float = DEFAULT_PAUSE_SECONDS,
    ) -> None:
        where = f"workflow {id!r}"
        self.target = checked_target(SessionType.WORKFLOW, id, locals())
        self.name = name or id
        self.history_runs = history_runs
        self.journal = journal
        self.pause_rules = PauseRules(while_paused, pause_timeout)
        self.model_name = None
        self.summarizer = None
        self._limits = TurnLimits.of(usage_limits, timeout, session_state)
        self._steps = _checked(where, steps, model_retries, see_history=add_history_to_steps)

    async def run(self, turn: Turn) -> JsonValue:
        """Take a turn: every step, in order."""
        return await within_limits(self._limits, turn, lambda budget: self._answer(turn, budget))

    async def _answer(self, turn: Turn, budget: Budget) -> JsonValue:
        results: dict[str, JsonValue] = {}
        for step in self._steps:
            results[step.name] = await step.result(turn, results, budget)
        return results[self._steps[-1].name]


@dataclass(frozen=True, slots=True)
class _MemberStep:
    """A step that an agent or a team does, in a run of its own below the workflow's."""

    name: str
    member: Member
    see_history: bool

    async def result(self, turn: Turn, results: Mapping[str, JsonValue], budget: Budget) -> JsonValue:
        run = begun_run(turn, self.member.target, self.member.name, _given(turn.parts, results), self.name)
        part = turn.part(self.name, run)
        if not self.see_history:
            part.history = ()
        part.results = _results(results)
        try:
            await finish(run, self.member, part, budget)
        finally:
            kind = self.member.target.type.value
            turn.step_results.append(StepResult(self.name, kind, self.member.name, run.status, run.content, run.run_id))
        return run.content


@dataclass(frozen=True, slots=True)
class _FunctionStep:
    """A step that a function of the turn does."""

    name: str
    function: StepFunction

    async def result(self, turn: Turn, results: Mapping[str, JsonValue], _budget: Budget) -> JsonValue:
        part = turn.within(self.name)
        part.results = _results(results)
        if turn.origin is not None and self.name in turn.origin.functions:
            # It is only called again for its result: what it changed before the pause is stored.
            part.session = SharedSession(deepcopy(turn.session.state), turn.session.name)
        status, content = RunStatus.CANCELLED, None
        try:
            content = as_json(await self.function(part), what=f"step {self.name!r}")
            status = RunStatus.COMPLETED
        except Exception as error:
            status = RunStatus.ERROR
            raise failure_of(f"step {self.name!r}", error) from error
        finally:
            called = _name_of(self.function, None)
            turn.step_results.append(StepResult(self.name, "function", called, status, content))
        return content


def _results(results: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Return results as a step may see them: what it does to them is its own affair."""
    return MappingProxyType(deepcopy(dict(results)))


def _given(asked: Input, results: Mapping[str, JsonValue]) -> Input:
    """Return what an agent or a team is given: the workflow's input, and after it the results so far."""
    if not results:
        return asked
    told = "\n".join(f'<result step="{name}">\n{text_of(result)}\n</result>' for name, result in results.items())
    if isinstance(asked, str):
        return f"{asked}\n\n{told}"
    return [*asked, TextPart(type="text", text=told)]


def _checked(
    where: str,
    steps: Sequence[Step | AnyAgent | Team | StepFunction],
    model_retries: int,
    *,
    see_history: bool,
) -> list[_MemberStep | _FunctionStep]:
    found: dict[str, _MemberStep | _FunctionStep] = {}
    for number, given in enumerate(steps, start=1):
        runs = given.runs if isinstance(given, Step) else given
        member = _member(where, number, runs, model_retries)
        name = given.name if isinstance(given, Step) else _name_of(runs, member)
        check_one(f"{where}: step {number}", "name", TEXT, name)
        if not name:
            raise ValueError(f"{where}: step {number} has no name; give it one: Step(name, …)")
        if name in found:
            raise ValueError(f"{where}: two steps are called {name!r}")
        if member is not None:
            found[name] = _MemberStep(name, member, see_history)
        elif _is_async(runs):
            found[name] = _FunctionStep(name, runs)
        else:
            kind = type(runs).__name__
            raise ValueError(
                f"{where}: step {name!r} is {kind}, not an Agent, a Team or an async function of one argument, the Turn"
            )
    if not found:
        raise ValueError(f"{where} has no steps")
    return list(found.values())


def _member(where: str, number: int, runs: AnyAgent | Team | StepFunction, model_retries: int) -> Member | None:
    if isinstance(runs, Team):
        return Member(runs.target, runs.name, runs.description, runs.take_task)
    if not isinstance(runs, Agent):
        return None
    check_agent(f"{where}: step {number}", runs)
    return agent_member(f"{where}: step {number}", runs, None, model_retries)


def _is_async(runs: object) -> TypeGuard[StepFunction]:
    """Whether it is an async function of the turn, or an object that is called as one, such as an @executor."""
    is_async = inspect.iscoroutinefunction(runs) or inspect.iscoroutinefunction(type(runs).__call__)
    return is_async and callable(runs) and takes(runs, None)


def _name_of(runs: AnyAgent | Team | StepFunction, member: Member | None) -> str:
    return member.target.id if member else str(getattr(runs, "__name__", getattr(runs, "name", "")))
