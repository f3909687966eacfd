"""`AgnoExecutor`: an Agno Team, Agent or Workflow, as something that can take turns."""

from __future__ import annotations

from typing import Any, Final

from agno.agent import Agent
from agno.run.base import RunStatus
from agno.team import Team
from agno.workflow import Workflow
from pydantic import JsonValue

from schemas.ids import SessionType
from worker.agno.copies import copy_for_turn, initialized
from worker.agno.database import SessionInTurn
from worker.agno.failures import failure_of_model, failure_of_run, without_texts
from worker.agno.given import given_input
from worker.agno.history import introduction_of, session_of
from worker.agno.logs import log_through_ours
from worker.agno.models import TurnModels
from worker.agno.results import leave
from worker.agno.settings import history_runs_of, warn_of_settings_without_effect
from worker.agno.summaries import AgnoSummarizer
from worker.errors import ExecutorFailed
from worker.executors.arguments import FLAG, HISTORY_RUNS, check, target_of
from worker.executors.turn import Turn

_KINDS: Final = ((Agent, SessionType.AGENT), (Team, SessionType.TEAM), (Workflow, SessionType.WORKFLOW))


class AgnoExecutor:
    """An Agno Team, Agent or Workflow, as something that can take turns. In TEAMTURN_TEAMS it becomes one by itself.

    Agno runs it as it is: members, modes, tools, hooks, structured output. The sessions and runs are teamturn's; its
    own `db` is kept for everything else, such as memories. Each turn has a copy; what it was given (tools, knowledge)
    is shared. A resumed turn is run again from its start, and given what is recorded: the answers of models, members'
    and managers' included, and the results of your tools and of Agno's toolkits. A tool whose end is not known ends the
    turn as `step_uncertain`, unless Agno's `has_side_effects=False` or an MCP hint says that it may be called again.
    Done again are hooks of runs, functions that are steps of a workflow, tools that yield, searches in knowledge, what
    a LearningMachine of yours asks its model, and what runs remotely. Raises ValueError for what can't be.

    Args:
        agno: The Team, Agent or Workflow, with an id or a name: requests name it by its id.
        history_runs: How many completed runs of the session Agno is given; by default as many as its settings ask for.
        journal: As for a Team.

    """

    whole_history: Final = True

    def __init__(self, agno: Any, *, history_runs: int | None = None, journal: bool = True) -> None:
        kind = next((kind for of_type, kind in _KINDS if isinstance(agno, of_type)), None)
        if kind is None:
            raise ValueError(f"AgnoExecutor needs an Agno Team, Agent or Workflow, not {type(agno).__name__}")
        if not agno.id and not agno.name:
            raise ValueError(f"an Agno {type(agno).__name__} that requests can name needs an id or a name")
        where = f"Agno's {type(agno).__name__} {agno.id or agno.name!r}"
        check(where, {"history_runs": HISTORY_RUNS, "journal": FLAG}, locals())
        log_through_ours()
        try:
            initialized(agno)
        except SystemExit:  # so Agno ends where it has no model, and its default's library is missing
            raise ValueError(f"{where} has no model") from None
        self.target = target_of(kind, agno.id, f"the id {agno.id!r}")
        self.name = agno.name or agno.id
        self.model_name = _model_name(agno)
        self.journal = journal
        self.history_runs = history_runs_of(agno) if history_runs is None else history_runs
        warn_of_settings_without_effect(agno)
        manager = getattr(agno, "session_summary_manager", None)
        self.summarizer = None if manager is None else AgnoSummarizer(manager)
        self._agno = agno
        self._defaults = agno.session_state

    async def run(self, turn: Turn) -> JsonValue:
        """Take a turn."""
        held = SessionInTurn(session_of(turn, self.target, self.name, self._defaults))
        if self._begins(turn):
            held.session.runs.insert(0, introduction_of(self._agno, self.target))
        models = TurnModels(turn)
        own = copy_for_turn(self._agno, held, models)
        if self.summarizer is not None:
            _leave_summaries_to_us(own, turn)
        run = None
        try:
            run = await own.arun(
                turn.input,
                run_id=turn.run_id,
                session_id=turn.session_id,
                user_id=turn.user_id,
                metadata=dict(turn.metadata),
                stream=False,
                **given_input(turn),
            )
        except Exception as error:
            if any(error is failure for failure in models.failures):
                raise failure_of_model(error) from error
            raise
        finally:
            leave(turn, run, held, models.failures)
        self._check(run, models)
        content: JsonValue = without_texts(run.content, models.failures)
        return content

    def _begins(self, turn: Turn) -> bool:
        """Whether the session's first run is at hand, and before it what Agno introduces itself with."""
        at_hand = self.history_runs is None or len(turn.history) < self.history_runs
        return at_hand and getattr(self._agno, "introduction", None) is not None

    def _check(self, run: Any, models: TurnModels) -> None:
        if run.status is RunStatus.completed:
            return
        if run.status is RunStatus.error:
            raise failure_of_run(str(self.target), run, models.failures)
        if run.status is RunStatus.paused:
            raise ExecutorFailed(f"{self.target} waits for a decision or an input, which can't be given yet")
        raise ExecutorFailed(f"{self.target} was cancelled by its own code")


def _leave_summaries_to_us(own: Any, turn: Turn) -> None:
    """Keep Agno from writing the summary in its run, and have it show the runs that ours does not cover yet."""
    own.session_summary_manager = None
    own.enable_session_summaries = False
    if turn.history and not own.add_history_to_context:
        own.add_history_to_context = True
        own.num_history_runs = len(turn.history)
    elif own.num_history_runs is not None:
        own.num_history_runs = max(own.num_history_runs, len(turn.history))


def _model_name(agno: Any) -> str | None:
    model = getattr(agno, "model", None)
    return None if model is None else f"{model.get_provider()}:{model.id}"
