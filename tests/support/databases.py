"""Databases for tests: each its own, migrated and empty; one that was left as it was given is given again.

To create a database and to drop it costs the server some hundred files each time. So the rows that a test has left are
deleted, and what is otherwise as it was made goes back to the pool; what is not is dropped.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import asyncpg
from yarl import URL

_MOST_BYTES: Final = 24 * 2**20
"""Of a database that is used again: one with many deleted rows is slower than a new one."""
_MOST_USES: Final = 20

_CUT_OFF: Final = """
select pg_terminate_backend(pid, 5000) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""
_TABLES: Final = """
select oid::regclass::text from pg_class
where relkind = 'r' and oid >= 16384
  and relname not in ('teamturn_migrations', 'teamturn_compatible_migrations', 'agno_schema_versions')
order by relname
"""
_FINGERPRINT: Final = """
select md5(concat_ws(
    ' ',
    (select string_agg(concat_ws(',', oid, relname, relacl, reloptions), ';' order by oid)
        from pg_class where oid >= 16384 and relnamespace not in ('pg_toast'::regnamespace)),
    (select string_agg(concat_ws(',', attrelid, attname, atttypid, attnotnull), ';' order by attrelid, attnum)
        from pg_attribute where attrelid >= 16384 and attnum > 0),
    (select string_agg(concat_ws(',', oid, proname, prosrc, proacl), ';' order by oid) from pg_proc where oid >= 16384),
    (select string_agg(concat_ws(',', oid, ev_action), ';' order by oid) from pg_rewrite where oid >= 16384),
    (select string_agg(concat_ws(',', oid, tgenabled), ';' order by oid) from pg_trigger),
    (select string_agg(concat_ws(',', oid, nspname, nspacl), ';' order by oid) from pg_namespace
        where nspname not like 'pg\\_%'),
    (select string_agg(concat_ws(',', oid, extname), ';' order by oid) from pg_extension),
    (select string_agg(concat_ws(',', setrole, setconfig), ';') from pg_db_role_setting
        where setdatabase = (select oid from pg_database where datname = current_database())),
    (select concat_ws(',', datallowconn, datconnlimit, datacl) from pg_database where datname = current_database()),
    (select string_agg(applied::text, ';' order by applied) from ai.teamturn_migrations as applied),
    (select string_agg(applied::text, ';' order by applied) from ai.teamturn_compatible_migrations as applied),
    (select string_agg(version::text, ';' order by version) from ai.agno_schema_versions as version)
))
"""


class Databases:
    """Copies of a template, on one server."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server = URL(server_url)
        self._template = template
        self._free: list[tuple[str, int]] = []
        self._fingerprint: str | None = None

    @asynccontextmanager
    async def lent(self, *, new: bool = False) -> AsyncIterator[str]:
        """Give the URL of a database for the block; it is nobody else's, and if it is to be new never was."""
        name, uses = self._free.pop() if self._free and not new else (await self._created(), 0)
        try:
            yield self._url(name)
        finally:
            if uses + 1 < _MOST_USES and await self._is_as_new(name):
                self._free.append((name, uses + 1))
            else:
                await self._on_server(f'drop database if exists "{name}" with (force)')

    def _url(self, name: str) -> str:
        return str(self._server.with_path(f"/{name}"))

    async def _created(self) -> str:
        name = f"teamturn_{uuid.uuid4().hex[:12]}"
        await self._on_server(f'create database "{name}" template "{self._template}"')
        if self._fingerprint is None:
            connection = await asyncpg.connect(self._url(name))
            self._fingerprint = await connection.fetchval(_FINGERPRINT)
            await connection.close()
        return name

    async def _is_as_new(self, name: str) -> bool:
        """Empty a database, and return whether it can be used again."""
        with suppress(asyncpg.PostgresError, OSError, TimeoutError):
            connection = await asyncpg.connect(self._url(name), server_settings={"statement_timeout": "5000"})
            try:
                await connection.execute("set default_transaction_read_only = off")
                await connection.execute(_CUT_OFF)
                if await connection.fetchval(_FINGERPRINT) != self._fingerprint:
                    return False
                tables = [record[0] for record in await connection.fetch(_TABLES)]
                await connection.execute("".join(f"delete from {table};" for table in tables))  # noqa: S608 - Postgres's own names
                size = await connection.fetchval("select pg_database_size(current_database())")
                return int(size) < _MOST_BYTES
            finally:
                await connection.close()
        return False

    async def _on_server(self, statement: str) -> None:
        admin = await asyncpg.connect(str(self._server))
        try:
            await admin.execute(statement)
        finally:
            await admin.close()
