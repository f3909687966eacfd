"""A turn's own copy of an Agno object: nothing that Agno changes of it is seen by another turn.

Copied are the team, its members, a workflow's steps, what Agno keeps for their sake (managers, lists and dicts), and
tools that are connected for each run. Put in place for the turn are the databases and the models. Everything else
stays what the user gave, and is shared by all turns, as it is between the runs of an object in Agno itself: tools,
hooks, knowledge, skills, a LearningMachine, MCP servers that are connected already.

Agno's own `deep_copy` is no help: it copies what tools belong to (a method's object: a pool, a cache) for each run,
shares the managers that it changes, and takes four times as long (4 ms for a team of two members with a tool).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agno.agent import Agent
from agno.models.message import Message
from agno.team import Team
from agno.workflow import Condition, Loop, Parallel, Router, Step, Steps, Workflow

from worker.agno.database import SessionInTurn, database_for
from worker.agno.models import TurnModels
from worker.agno.parts import entities_in

Entity = Any
"""An Agno Agent or Team."""

_COPIED: Final = (Agent, Team, Workflow, Step, Steps, Loop, Parallel, Condition, Router)
_PLAIN: Final = frozenset({str, int, bool, float})
_DATA: Final = ("session_state", "metadata")
"""Attributes that are JSON: they are copied to the ground."""
_MODELS: Final = ("model", "reasoning_model", "parser_model", "output_model", "followup_model")
_WITH_MODELS: Final = ("memory_manager", "compression_manager", "session_summary_manager", "compaction", "followups")
"""Attributes that have a model of their own, or of its owner's."""
_FALLBACKS: Final = ("on_error", "on_rate_limit", "on_context_overflow")


def initialized(agno: Any) -> None:
    """Have Agno complete the original, so that no turn's copy has to: ids, models, managers with their databases."""
    if isinstance(agno, Workflow):
        agno.initialize_workflow()
        for entity in entities_in(agno):
            initialized(entity)
    elif isinstance(agno, Team):
        agno.initialize_team()
        for member in agno.members if isinstance(agno.members, list) else ():
            initialized(member)
    elif isinstance(agno, Agent):
        agno.initialize_agent()


def copy_for_turn(agno: Any, held: SessionInTurn | None, models: TurnModels) -> Any:
    """Return a copy of an Agno object that works on a session, with models of the turn's.

    What is part of something else is given no session: Agno has its leader, or its workflow, store that.
    """
    copies = _Copies(models)
    own = copies.of(agno)
    copies.settle(own, held)
    return own


@dataclass
class _Copies:
    """The copies of what an object is made of: one of each, however often it is part of it."""

    models: TurnModels
    _unsettled: list[Any] = field(default_factory=list)
    """The agents, teams and workflows among them that are not made the turn's yet."""
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """Originals and copies: an original that were gone could leave its id to another one."""

    def of(self, value: Any) -> Any:
        if value is None or type(value) in _PLAIN:
            return value
        if isinstance(value, _COPIED):
            return self._made[id(value)][1] if id(value) in self._made else self._copied(value)
        if isinstance(value, Message):
            return deepcopy(value)
        if type(value) in {list, tuple}:
            return type(value)(self.of(item) for item in value)
        return copy(value) if type(value) in {dict, set} else value

    def _copied(self, original: Any) -> Any:
        own = copy(original)
        self._made[id(original)] = (original, own)
        for name, value in vars(original).items():
            vars(own)[name] = deepcopy(value) if name in _DATA else self.of(value)
        if isinstance(own, Agent | Team | Workflow):
            self._unsettled.append(own)
        if isinstance(own, Router) and callable(own.selector):
            # It may name a step by the object that it was made of.
            own.selector = _through(own.selector, lambda chosen: self.settled(self.of(chosen)))
        return own

    def settle(self, leader: Any, held: SessionInTurn | None) -> None:
        """Make the copies the turn's."""
        while self._unsettled:
            entity = self._unsettled.pop()
            _settle(entity, held if entity is leader else None, self.models)

    def settled(self, own: Any) -> Any:
        """Return what was copied later, made the turn's."""
        self.settle(None, None)
        return own


def _settle(own: Any, held: SessionInTurn | None, models: TurnModels) -> None:
    own.stream = False
    if hasattr(own, "overwrite_db_session_state"):
        own.overwrite_db_session_state = False  # the request's state is in the session's already
    if isinstance(own, Workflow):
        own.db = database_for(own.db, held)
        return
    if held is not None or own.db is not None:
        _keep_to_own_memories(own)
        own.db = database_for(own.db, held)
    own.cache_session = False
    _settle_models(own, models)
    if isinstance(own.tools, list):
        own.tools = [_own_connection(tool) for tool in own.tools]
    if isinstance(own, Team):
        if not isinstance(own.members, list):
            # They may be the same in each turn.
            own.members = _through(own.members, lambda members: _copies_of(members, models))
        if held is None:
            own.store_member_responses = True  # else Agno drops its members' runs before anybody has seen them


def _keep_to_own_memories(own: Entity) -> None:
    """Keep it from taking the turn's database for one that keeps memories, where it has none."""
    if own.db is not None:
        return
    if own.memory_manager is None or own.memory_manager.db is None:
        own.memory_manager = None
        own.update_memory_on_run = own.enable_agentic_memory = False
        own.add_memories_to_context = False
    if getattr(own.learning, "db", None) is None:
        own.learning = None


def _settle_models(own: Entity, models: TurnModels) -> None:
    for name in _MODELS:
        if (model := getattr(own, name, None)) is not None:
            setattr(own, name, models.of(model))
    for name in _WITH_MODELS:
        found: Any = getattr(own, name, None)
        if hasattr(found, "model"):
            settled = copy(found)
            settled.model = models.of(settled.model)
            setattr(own, name, settled)
    if own.fallback_config is not None:
        kept = {name: [models.of(model) for model in getattr(own.fallback_config, name)] for name in _FALLBACKS}
        own.fallback_config = replace(own.fallback_config, **kept)


def _own_connection(tool: Any) -> Any:
    """Return a copy of a tool that Agno connects for a run, and closes after it: others are using theirs meanwhile."""
    if getattr(tool, "requires_connect", False) is True:
        try:
            return deepcopy(tool)  # its functions are methods of its own
        except Exception:  # noqa: BLE001 - whatever can't be copied; Agno itself shares it then
            return tool
    if any(kind.__name__ == "MCPTools" for kind in type(tool).__mro__) and not tool.initialized:
        own = copy(tool)
        vars(own).update({name: copy(value) for name, value in vars(tool).items() if isinstance(value, dict | list)})
        return own
    return tool


def _copies_of(members: Any, models: TurnModels) -> list[Any]:
    return [_copy_of(member, models) if isinstance(member, Agent | Team) else member for member in members or ()]


def _copy_of(member: Entity, models: TurnModels) -> Entity:
    # A function of the user's has made it: what it shares with others would be given this turn's models for good.
    initialized(member)
    return copy_for_turn(member, None, models)


def _through(function: Callable[..., Any], changed: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function of the user's, with what it returns changed. Agno looks at the parameters that it has."""

    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return changed(await function(*args, **kwargs))

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return changed(function(*args, **kwargs))

    return awaited if inspect.iscoroutinefunction(function) else called
