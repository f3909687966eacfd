"""The database of a turn's copy: sessions and runs are the turn's, everything else goes to the object's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import pytest
from agno.db.base import AsyncBaseDb, BaseDb, SessionType
from agno.db.schemas import UserMemory
from agno.run.team import TeamRunOutput
from agno.session import AgentSession, TeamSession

from worker.agno.database import SessionInTurn, database_for

_SESSIONS_AND_RUNS = {
    *("get_session", "get_sessions", "upsert_session", "upsert_sessions", "rename_session", "delete_session"),
    *("delete_sessions", "reassign_session_owner", "get_run", "get_runs", "upsert_run", "delete_run", "delete_runs"),
    "cancel_pending_run",
}


class _Asked:
    """A database that says what it was asked."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.id = "own"
        self._asynchronous = asynchronous

    def __getattr__(self, name: str) -> Any:
        async def later(*args: Any, **_: Any) -> Any:
            return (name, args)

        return later if self._asynchronous else lambda *args, **_: (name, args)


def _held() -> SessionInTurn:
    return SessionInTurn(TeamSession(session_id="s1", session_data={"session_state": {"a": 1}}, runs=[]))


def _methods(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("__") and inspect.isroutine(getattr(kind, name))}


def _instance(kind: type, names: Iterable[str]) -> Any:
    """A database of Agno's kind that has methods of its own by these names."""
    return type("Own", (kind,), {name: lambda *_, **__: None for name in names})()


@pytest.mark.parametrize("kind", [BaseDb, AsyncBaseDb])
async def test_every_method_but_those_of_sessions_and_runs_is_its_own_database_s(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    asynchronous = kind is AsyncBaseDb
    methods = _methods(kind)
    db: Any = database_for(_instance(kind, methods), _held())
    monkeypatch.setattr(db, "_own", _Asked(asynchronous=asynchronous))
    assert kind in type(db).__mro__
    assert methods >= _SESSIONS_AND_RUNS - {"upsert_sessions"}
    for name in methods - _SESSIONS_AND_RUNS:
        method = getattr(db, name)
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(getattr(kind, name)), name
        made = method("x")
        assert (await made if inspect.isawaitable(made) else made) == (name, ("x",))
    assert db.id == "own"


@pytest.mark.parametrize("kind", [BaseDb, AsyncBaseDb])
def test_what_its_own_database_does_not_do_it_does_not_either(kind: Any) -> None:
    """Agno asks by that whether there is a place to keep, say, what it has compacted."""
    abstract = set(kind.__abstractmethods__)
    db = database_for(_instance(kind, abstract), _held())
    others = _methods(kind) - abstract - _SESSIONS_AND_RUNS
    assert others
    static = inspect.getattr_static
    assert {name for name in others if static(type(db), name) is not static(kind, name)} == set()


def test_the_session_is_found_by_its_id_and_kind_and_no_other_one() -> None:
    held = _held()
    db = database_for(None, held)
    assert db.get_session(session_id="s1", session_type=SessionType.TEAM) is held.session
    assert db.get_session("s1", "team", user_id="somebody") is held.session
    assert db.get_session(session_id="s1", session_type=SessionType.AGENT) is None
    assert db.get_session(session_id="s2", session_type=SessionType.TEAM) is None
    assert db.get_session("s1", "team", deserialize=False)["session_id"] == "s1"
    assert (db.get_sessions(), db.get_sessions(deserialize=False)) == ([], ([], 0))


def test_what_is_stored_is_the_state_and_the_runs_of_the_session_and_of_no_other() -> None:
    held = _held()
    db = database_for(None, held)
    stored = TeamSession(session_id="s1", session_data={"session_state": {"a": 2}})
    db.upsert_session(session=stored)
    db.upsert_session(session=AgentSession(session_id="s1", session_data={"session_state": {"b": 1}}))
    db.upsert_run(run=TeamRunOutput(run_id="r1"), session_id="s1", user_id=None, run_index=0)
    assert held.data == {"session_state": {"a": 2}}
    assert db.get_run("r1").run_id == "r1"
    assert [run.run_id for run in db.get_runs(session_id="s1")] == ["r1"]
    assert db.delete_session("s1") is False
    assert db.get_session("s1", "team") is held.session


def test_without_a_session_none_is_found_and_none_is_kept() -> None:
    db = database_for(None, None)
    db.upsert_session(session=TeamSession(session_id="s1"))
    db.upsert_run(run=TeamRunOutput(run_id="r1"), session_id="s1")
    assert (db.get_session("s1", "team"), db.get_run("r1"), db.get_runs()) == (None, None, [])


def test_without_a_database_of_its_own_what_it_would_keep_is_forgotten() -> None:
    memory = UserMemory(memory="likes tea", user_id="u1")
    database_for(None, _held()).upsert_user_memory(memory)
    assert database_for(None, _held()).get_user_memories(user_id="u1") == []
