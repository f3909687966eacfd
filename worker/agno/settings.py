"""What an Agno object asks for in its own settings: how much of a session, and what it can't have here. Read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import structlog
from agno.team import Team
from agno.workflow import Workflow

from worker.agno.parts import entities_in, steps_in

_DEFAULT_RUNS: Final = 3
"""Agno's own."""
_WITHOUT_EFFECT: Final = {
    "search_past_sessions": "no other session is found",
    "overwrite_db_session_state": "a request's state is laid over the stored one, key by key",
    "stream": "the answer is sent as a whole",
}

_log = structlog.get_logger()


def history_runs_of(agno: Any) -> int | None:
    """Return how many completed runs of a session it needs; None: all of them."""
    needed = list(_needed(agno))
    return None if None in needed else max((count for count in needed if count is not None), default=0)


def warn_of_settings_without_effect(agno: Any) -> None:
    """Say in the log what of its settings has no effect here."""
    for entity in (agno, *_parts(agno)):
        for name, consequence in _WITHOUT_EFFECT.items():
            if getattr(entity, name, None):
                _log.warning("agno_setting_without_effect", of=entity.id, setting=name, consequence=consequence)


def _parts(agno: Any) -> Iterator[Any]:
    members = getattr(agno, "members", None)
    for part in entities_in(agno) if isinstance(agno, Workflow) else (members if isinstance(members, list) else ()):
        yield part
        yield from _parts(part)


def _needed(agno: Any) -> Iterator[int | None]:
    if isinstance(agno, Workflow):
        # A step that is a function can ask for the workflow's history whatever the settings say.
        yield agno.num_history_runs
        if agno.agent is not None:
            yield agno.agent.num_history_runs
        for step in steps_in(agno):
            yield getattr(step, "num_history_runs", None) or 0
        return
    yield from _of_entity(agno, agno.num_history_runs)


def _of_entity(entity: Any, leader_s: int | None) -> Iterator[int | None]:
    if getattr(entity, "read_chat_history", False) or getattr(entity, "read_tool_call_history", False):
        yield None
    if entity.add_history_to_context:
        yield entity.num_history_runs or leader_s or entity.num_history_messages or _DEFAULT_RUNS
    if getattr(entity, "compaction", None):
        yield None
    if isinstance(entity, Team):
        if entity.add_team_history_to_members:
            yield entity.num_team_history_runs
        # A member's own last runs are looked for within these: it may have taken part in none of them.
        for member in entity.members if isinstance(entity.members, list) else ():
            yield from _of_entity(member, leader_s)
