"""What is stored of the session that is talked in."""

from __future__ import annotations

import json
from io import StringIO
from typing import Final

from rich.console import Console

from schemas.sessions import StoredSession, object_of
from worker.cli.transcripts import print_session
from worker.errors import StartupError, StoreUnavailable
from worker.sessions.database import DRIVER_ERRORS, application_name, connect, translated
from worker.sessions.migrations import require_current
from worker.sessions.reader import is_turn, show_session
from worker.settings import Settings

_LAST_TURNS: Final = 20


class StoredHere:
    """Reads one session for its user; the only thing of a conversation that needs Postgres."""

    def __init__(self, settings: Settings, session_id: str, user_id: str | None) -> None:
        self._settings = settings
        self._session_id = session_id
        self._user_id = user_id

    async def state(self) -> str:
        """Return the session's state as JSON, or a sentence on why there is none to be shown."""
        session = await self._session(last=1)
        if isinstance(session, str):
            return session
        state = object_of(session.session_data).get("session_state") or {}
        return json.dumps(state, ensure_ascii=False, indent=2)

    async def history(self, *, columns: int) -> str:
        """Return the session's last turns, or a sentence on why there are none to be shown."""
        session = await self._session(last=_LAST_TURNS + 1)
        if isinstance(session, str):
            return session
        turns = [number for number, run in enumerate(session.runs) if is_turn(run)]
        earlier = len(turns) > _LAST_TURNS
        if earlier:
            session = session.model_copy(update={"runs": session.runs[turns[0] + 1 :]})
        page = StringIO()
        print_session(
            session, Console(file=page, width=columns, highlight=False, markup=False, no_color=True), earlier=earlier
        )
        return page.getvalue().rstrip("\n")

    async def _session(self, *, last: int) -> StoredSession | str:
        try:
            session = await self._read(last)
        except (StartupError, StoreUnavailable) as error:
            return f"The stored session can't be shown; the chat goes on without it. {error}"
        if session is None:
            return "Nothing is stored of this session yet."
        if session.user_id not in {None, self._user_id}:
            return "The session belongs to somebody else."
        return session

    async def _read(self, last: int) -> StoredSession | None:
        settings = self._settings
        connection = await connect(settings.postgres_url, settings.db_schema, application=application_name("chat"))
        try:
            await require_current(connection, settings.db_schema)
            return await show_session(connection, self._session_id, last=last)
        except DRIVER_ERRORS as error:
            raise translated(error) from error
        finally:
            await connection.close()
