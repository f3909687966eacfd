"""Long sessions, made of copies of a run that was taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from worker.settings import Settings

_SESSION: Final = "insert into ai.agno_sessions select (jsonb_populate_record(s, $2::jsonb)).* "
_SESSION_OF: Final = "from ai.agno_sessions as s where s.session_id = $1"
_RUNS: Final = """
    insert into ai.agno_runs
    select (jsonb_populate_record(r, jsonb_build_object(
        'run_id', $2 || '/' || number, 'session_id', $2, 'run_index', number,
        'run_data', r.run_data || jsonb_build_object('run_id', $2 || '/' || number, 'session_id', $2::text)
    ))).*
    from ai.agno_runs as r, generate_series(0, $3::integer - 1) as number
    where r.session_id = $1
"""
_RECEIPTS: Final = """
    insert into ai.receipts
    select (jsonb_populate_record(r, jsonb_build_object('run_id', $2 || '/' || number, 'session_id', $2::text))).*
    from ai.receipts as r, generate_series(0, $3::integer - 1) as number
    where r.session_id = $1
"""


@asynccontextmanager
async def settled_rows(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection to copy with. At its end Postgres knows what it has, as it does a minute later by itself."""
    database = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        yield database
        await database.execute("vacuum analyze")
        await database.execute("checkpoint")
    finally:
        await database.close()


async def copy_session(database: asyncpg.Connection[Any], model: str, copy: str, *, runs: int) -> None:
    """Make a session of so many runs, each like the one run of the model session; with receipts where they are."""
    ours = await database.fetchval("select to_regclass('ai.receipts') is not null")
    changed = f'{{"session_id": "{copy}"' + (f', "turn_seq": {runs}}}' if ours else "}")
    await database.execute(_SESSION + _SESSION_OF, model, changed)
    await database.execute(_RUNS, model, copy, runs)
    if ours:
        await database.execute(_RECEIPTS, model, copy, runs)
