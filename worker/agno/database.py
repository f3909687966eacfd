"""The database that a turn's copy of an Agno object works on: sessions and runs in memory, the rest in its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, cast

from agno.db.base import AsyncBaseDb, BaseDb
from agno.db.in_memory import InMemoryDb

Session = Any
"""Agno's AgentSession, TeamSession or WorkflowSession."""
Run = Any
"""Agno's RunOutput, TeamRunOutput or WorkflowRunOutput."""


@dataclass
class SessionInTurn:
    """The session of a turn, as Agno reads it and leaves it."""

    session: Session
    """As Agno works on it."""
    data: dict[str, Any] | None = None
    """Its state and name as Agno has stored them; None: it has not."""
    runs: dict[str, Run] = field(default_factory=dict)
    """What Agno has stored, by run_id: as it wants it stored, media and tool results left out where it is told to."""

    def name_it(self, name: str) -> None:
        """Give the session a name."""
        self.session.session_data = self.data = {**(self.session.session_data or {}), "session_name": name}


def database_for(own: Any, held: SessionInTurn | None) -> Any:
    """Return a database of one turn's. `held` is the session that it has; without one it has none, and stores none.

    What is no session and no run goes to `own`; without one, it is forgotten with the turn.
    """
    own = InMemoryDb() if own is None else own
    base: Any = AsyncBaseDb if isinstance(own, AsyncBaseDb) else BaseDb
    return _class_over(base, cast("Hashable", type(own)))(own, held)


class _Sessions:
    """What Agno does with sessions and runs, by the names of BaseDb's methods."""

    def __init__(self, held: SessionInTurn | None) -> None:
        self.held = held

    def get_session(
        self, session_id: str, session_type: Any = None, *_: Any, deserialize: bool = True, **__: Any
    ) -> Any:
        found = self._found(session_id)
        if found is None or not _is_of(found, session_type):
            return None
        return found if deserialize else found.to_dict()

    def get_sessions(self, *_: Any, deserialize: bool = True, **__: Any) -> Any:
        return [] if deserialize else ([], 0)

    def upsert_session(self, session: Session, *_: Any, deserialize: bool = True, **__: Any) -> Any:
        if self.held is not None and type(session) is type(self.held.session):
            # Not the session itself: it can be a view of it, without what is not to be stored.
            self.held.data = session.session_data
        return session if deserialize else session.to_dict()

    def upsert_sessions(self, sessions: list[Session], *_: Any, **__: Any) -> Any:
        return [self.upsert_session(session) for session in sessions]

    def rename_session(self, session_id: str, _type: Any = None, session_name: str = "", *_: Any, **__: Any) -> Any:
        if self.held is None or self._found(session_id) is None:
            return None
        self.held.name_it(session_name)
        return self.held.session

    def get_run(self, run_id: str, *_: Any, deserialize: bool = True, **__: Any) -> Any:
        runs = {run.run_id: run for run in self._runs()}
        found = runs.get(run_id)
        return found if found is None or deserialize else found.to_dict()

    def get_runs(self, *_: Any, deserialize: bool = True, **__: Any) -> Any:
        runs = self._runs()
        return runs if deserialize else ([run.to_dict() for run in runs], len(runs))

    def upsert_run(self, run: Run, *_: Any, **__: Any) -> Any:
        if self.held is not None:
            self.held.runs[run.run_id] = run
        return run

    def delete_session(self, *_: Any, **__: Any) -> Any:
        # A turn can't delete the session that it is of.
        return False

    reassign_session_owner = delete_run = delete_session

    def delete_sessions(self, *_: Any, **__: Any) -> Any:
        return None

    delete_runs = cancel_pending_run = delete_sessions

    def _found(self, session_id: str) -> Session | None:
        if self.held is None or self.held.session.session_id != session_id:
            return None
        return self.held.session

    def _runs(self) -> list[Run]:
        if self.held is None:
            return []
        stored = {run.run_id: run for run in self.held.session.runs or []} | self.held.runs
        return list(stored.values())


_OURS: Final = frozenset(name for name in vars(_Sessions) if not name.startswith("_"))


def _is_of(session: Session, session_type: Any) -> bool:
    kind = getattr(session_type, "value", session_type)
    return kind is None or type(session).__name__.lower() == f"{kind}session"


@cache
def _class_over(base: type, of_own: Hashable) -> Callable[[Any, SessionInTurn | None], Any]:
    """Return a database class of Agno's kind `base`: Agno asks by isinstance whether to await.

    Agno also asks what a database can do by looking which methods it has of its own: so has this one.
    """
    methods = {name: _method(base, name) for name in dir(base) if _is_method(base, name) and _has(of_own, base, name)}
    return type(base)("TurnDb", (_Passing, base), methods)


def _has(of_own: Hashable, base: type, name: str) -> bool:
    """Whether it is to have a method: all that are abstract, and beside them what the object's own database has."""
    if name in _OURS or name in getattr(base, "__abstractmethods__", ()):
        return True
    return inspect.getattr_static(of_own, name) is not inspect.getattr_static(base, name)


class _Passing:
    def __init__(self, own: Any, held: SessionInTurn | None) -> None:
        self._own = own
        self._sessions = _Sessions(held)

    def __getattr__(self, name: str) -> Any:
        # The attributes that Agno's own classes set in __init__: table names, the id.
        return getattr(self._own, name)


def _is_method(base: type, name: str) -> bool:
    return not name.startswith("__") and inspect.isroutine(getattr(base, name))


def _method(base: type, name: str) -> Callable[..., Any]:
    holder = "_sessions" if name in _OURS else "_own"

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(getattr(self, holder), name)(*args, **kwargs)

    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = called(self, *args, **kwargs)
        return await made if inspect.isawaitable(made) else made

    # Agno also asks whether a method is a coroutine function.
    return awaited if inspect.iscoroutinefunction(getattr(base, name)) else called
