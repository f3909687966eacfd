"""Conversations as they are stored: read from the view `sessions`, each by its own user only."""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg

Json = dict[str, Any]

_MOST_SESSIONS: Final = 100
_MOST_RUNS: Final = 400
"""Of one conversation, members' runs included: the last ones."""

_LIST: Final = """
select session_id, team_id, coalesce(session_data ->> 'session_name', metadata ->> 'title') as title,
       coalesce(updated_at, created_at) as active_at
from sessions
where user_id = $1 and session_type = 'team'
order by active_at desc, session_id
limit $2
"""
_SESSION: Final = """
select team_id, coalesce(session_data ->> 'session_name', metadata ->> 'title') as title
from sessions
where session_id = $1 and user_id = $2 and session_type = 'team'
"""
_RUNS: Final = """
select run.data
from sessions, jsonb_array_elements(runs) with ordinality as run (data, number)
where session_id = $1 and user_id = $2
order by run.number desc
limit $3
"""


class Stored:
    """What Postgres has of the users' conversations."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def sessions(self, user_id: str) -> list[Json]:
        """Return the user's conversations, the latest first: session_id, team, title, active_at (unix seconds)."""
        rows = await self._pool.fetch(_LIST, user_id, _MOST_SESSIONS)
        return [
            {
                "session_id": row["session_id"],
                "team": row["team_id"],
                "title": row["title"],
                "active_at": row["active_at"],
            }
            for row in rows
        ]

    async def session(self, user_id: str, session_id: str) -> Json | None:
        """Return the team and title of a conversation; None if there is none of this user."""
        row = await self._pool.fetchrow(_SESSION, session_id, user_id)
        return None if row is None else {"team": row["team_id"], "title": row["title"]}

    async def turns(self, user_id: str, session_id: str) -> tuple[list[Json], bool]:
        """Return a conversation's last turns, the earliest first, and whether there are others before them."""
        rows = await self._pool.fetch(_RUNS, session_id, user_id, _MOST_RUNS)
        runs = [run for row in reversed(rows) if isinstance(run := json.loads(row["data"]), dict)]
        # One that failed leaves the run paused, to be continued again.
        continued = {run.get("continues") for run in runs if run.get("status") != "ERROR"}
        turns = [_turn(run, runs, continued) for run in runs if not run.get("parent_run_id")]
        return turns, len(rows) == _MOST_RUNS


def _turn(run: Json, runs: list[Json], continued: set[Any]) -> Json:
    """Return a turn as the page shows it. What a paused run has done is told by the one that went on with it."""
    is_continued = run.get("run_id") in continued
    return {
        "run_id": run.get("run_id"),
        "text": "" if run.get("continues") else _asked(run.get("input")),
        "status": run.get("status"),
        "content": run.get("content"),
        "error": run.get("error"),
        "metrics": run.get("metrics"),
        "steps": [] if is_continued else _steps(run, runs),
        "approvals": [] if is_continued else run.get("approvals"),
    }


def _asked(given: Any) -> str:  # noqa: ANN401 - whatever a program stored
    """Return what the user wrote; of several parts, the text parts, a line each."""
    if isinstance(given, dict):
        given = given.get("input_content")
    if isinstance(given, list):
        return "\n".join(str(part["text"]) for part in given if isinstance(part, dict) and part.get("text"))
    return given if isinstance(given, str) else json.dumps(given)


def _steps(run: Json, runs: list[Json]) -> list[Json]:
    """Return what members and tools did in a run, in the order of the calls."""
    members = [one for one in runs if one.get("parent_run_id") == run.get("run_id")]
    messages = [one for one in run.get("messages") or [] if isinstance(one, dict)]
    returned = {one.get("tool_call_id"): one for one in messages if one.get("role") == "tool"}
    steps: list[Json] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        if calls and message.get("content"):
            steps.append({"kind": "said", "text": str(message["content"])})
        for call in calls:
            if (call.get("function") or {}).get("name") != "delegate_task":
                steps.append(_tool(call, returned.get(call.get("id"))))
            elif members:
                steps.append(_member(members.pop(0), runs))
    # In the modes "route" and "broadcast" no call of the leader's names them.
    return [*(_member(one, runs) for one in members), *steps]


def _tool(call: Json, returned: Json | None) -> Json:
    called = call.get("function") or {}
    return {
        "kind": "tool",
        "tool": called.get("name"),
        "arguments": _json_of(called.get("arguments")),
        "result": None if returned is None else returned.get("content"),
        "failed": returned is not None and bool(returned.get("tool_call_error")),
    }


def _member(run: Json, runs: list[Json]) -> Json:
    return {
        "kind": "member",
        "member": run.get("agent_name") or run.get("team_name") or run.get("agent_id") or run.get("team_id"),
        "status": run.get("status"),
        "content": run.get("content"),
        "steps": _steps(run, runs),
    }


def _json_of(text: Any) -> Any:  # noqa: ANN401 - what a model wrote
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text
