"""A turn's own copy of an Agno object: nothing that it changes is seen by another turn.

Agno's `deep_copy` makes it, as AgentOS has it made for each request. That shares by reference what holds connections:
databases, models, knowledge, skills. Of these, the database and the models are put in place for the turn here, and
managers that keep something of a run, or take over their owner's model and database, are copied. Knowledge, skills, a
LearningMachine and MCP tools that are connected already stay shared, as they are within Agno.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, Final

from agno.agent import Agent
from agno.team import Team
from agno.workflow import Workflow

from worker.agno.database import SessionInTurn, database_for
from worker.agno.models import TurnModels
from worker.agno.parts import entities_in

Entity = Any
"""An Agno Agent or Team."""

_MODELS: Final = ("model", "reasoning_model", "parser_model", "output_model", "followup_model")
_MANAGERS: Final = ("memory_manager", "compression_manager", "session_summary_manager")
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
    """Return a copy of an Agno object that works on a session, with models of the turn's. Raises what a copy raises."""
    own = agno.deep_copy()
    if own is agno or type(own) is not type(agno):
        raise TypeError(f"the deep_copy of {type(agno).__name__} made no copy of it")
    _settle(own, agno, held, models)
    return own


def _settle(own: Any, original: Any, held: SessionInTurn | None, models: TurnModels) -> None:
    # What is part of something else stores no session: Agno has its leader's, or its workflow's, do that.
    if isinstance(own, Workflow):
        own.db = database_for(original.db if original is not None else own.db, held)
        own.stream = False
        if own.agent is not None:
            _settle_entity(own.agent, None, None, models)
        for entity in entities_in(own):
            _settle(entity, None, None, models)
    else:
        _settle_entity(own, original, held, models)


def _settle_entity(own: Entity, original: Entity | None, held: SessionInTurn | None, models: TurnModels) -> None:
    if held is not None or own.db is not None:
        _keep_to_own_memories(own)
        own.db = database_for(own.db, held)
    own.cache_session = False
    own.stream = False
    _settle_models(own, original, models)
    if isinstance(own, Team):
        _settle_members(own, original, models)
    if (reasoning_agent := getattr(own, "reasoning_agent", None)) is not None:
        _settle(reasoning_agent, None, None, models)


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


def _settle_models(own: Entity, original: Entity | None, models: TurnModels) -> None:
    for name in _MODELS:
        if (model := getattr(own, name, None)) is not None:
            setattr(own, name, models.of(model))
    for name in _MANAGERS:
        if (manager := getattr(own, name, None)) is not None:
            manager = copy(manager)
            manager.model = models.of(manager.model)
            setattr(own, name, manager)
    # The original's: a copy's models would connect to their providers anew in each turn.
    if (config := (original or own).fallback_config) is not None:
        kept = {name: [models.of(model) for model in getattr(config, name)] for name in _FALLBACKS}
        own.fallback_config = replace(config, **kept)


def _settle_members(own: Entity, original: Entity | None, models: TurnModels) -> None:
    if not isinstance(own.members, list):
        own.members = _of_copies(own.members, lambda member: copy_for_turn(member, None, models))
        return
    originals = original.members if original is not None else [None] * len(own.members)
    for member, made_from in zip(own.members, originals, strict=True):
        if isinstance(member, Agent | Team):
            _settle(member, made_from, None, models)
        if isinstance(member, Team):
            member.store_member_responses = True  # else Agno drops its members' runs before anybody has seen them


def _of_copies(factory: Callable[..., Any], copied: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a factory of members that gives copies of what `factory` does: its own may be the same in each turn."""

    def copies(members: Any) -> list[Any]:
        return [copied(member) if isinstance(member, Agent | Team) else member for member in members or ()]

    @functools.wraps(factory)
    async def awaited(*args: Any, **kwargs: Any) -> list[Any]:
        return copies(await factory(*args, **kwargs))

    @functools.wraps(factory)
    def called(*args: Any, **kwargs: Any) -> list[Any]:
        return copies(factory(*args, **kwargs))

    return awaited if inspect.iscoroutinefunction(factory) else called
