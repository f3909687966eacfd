"""Connecting to Postgres, and the translation of its errors into ours: once, here."""

from __future__ import annotations

import os
import socket
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from pydantic import SecretStr

from worker.certificates import OF_POSTGRES, require_files, tls_mistake
from worker.errors import ClaimOutdated, StartupError, StatementRefused, StoreFull, StoreUnavailable
from worker.settings import hosts_of

CONNECT_LIMIT_SECONDS: Final = 10
OLDEST_SERVER: Final = 14
"""idle_session_timeout, on which the fencing of a frozen worker rests, came with PostgreSQL 14."""

IDLE_SESSION_TIMEOUT: Final = "15s"
"""Of a lane."""

DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

_TRY_AGAIN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.exceptions.OperatorInterventionError,  # shutting down, statement_timeout
    asyncpg.exceptions.IdleSessionTimeoutError,
    asyncpg.exceptions.ObjectNotInPrerequisiteStateError,  # lock_timeout among them
    asyncpg.exceptions.TransactionRollbackError,  # deadlock, serialization
    asyncpg.exceptions.ReadOnlySQLTransactionError,  # a stand-by: the fail-over is not over
    OSError,
    TimeoutError,
)


_ROW_AT_FAULT: Final = frozenset({"22", "23", "54"})
"""Classes of SQLSTATE: data exception, integrity constraint, program limit. All others are the database's state,
which an operator mends (a revoked grant, a missing table, a broken disk) while requests wait."""


async def connect(
    url: SecretStr,
    schema: str,
    *,
    application: str,
    lane: bool = False,
    writes: bool = False,
    statement_timeout: str | None = None,
) -> asyncpg.Connection:
    """Open a connection whose unqualified names are the schema's.

    A lane's connection gets the limits by which Postgres itself takes the locks from a worker that is frozen, cut
    off or stuck. One that writes, as a lane does, is to a server that takes writes: no stand-by. `sslmode` and the
    files of the URL mean what they mean to libpq. Raises StartupError for what an operator must mend (password,
    certificate, database, role, version), and StoreUnavailable where there is no server or it is not ready yet.
    """
    settings = {
        # Quoted: asyncpg passes it as it is, and the setting's own syntax folds and splits names.
        "search_path": f'"{schema}"',
        "application_name": application[:63],
        "timezone": "UTC",
    }
    if statement_timeout is not None:
        settings["statement_timeout"] = statement_timeout
    if lane:
        settings |= {
            # Freed in time an idle holder's locks; a worker frozen while it reads a large result is not idle,
            # and loses them by the unacknowledged data (measured: 5.4 s).
            "idle_session_timeout": IDLE_SESSION_TIMEOUT,
            "tcp_user_timeout": "5000",
            "lock_timeout": "5s",
            "statement_timeout": "30s",
            "idle_in_transaction_session_timeout": "15s",
            # The planner takes a batch for a hundred requests, and would compile each claim where sessions are long:
            # 24.5 ms with three of 12,000 runs, 0.5 ms without (measured).
            "jit": "off",
        }
    require_files("TEAMTURN_POSTGRES_URL", url, OF_POSTGRES)
    try:
        connection = await asyncpg.connect(
            url.get_secret_value(),
            timeout=CONNECT_LIMIT_SECONDS,
            server_settings=settings,
            target_session_attrs=SessionAttribute.read_write if lane or writes else None,
        )
    except (*DRIVER_ERRORS, TimeoutError, ValueError) as error:
        raise _why_not_connected(error, url) from error
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        await connection.close()
        raise StartupError(f"PostgreSQL {version.major} is too old: teamturn needs {OLDEST_SERVER} or newer")
    return connection


def _why_not_connected(  # noqa: PLR0911 - each return is a case
    error: Exception, url: SecretStr
) -> StartupError | StoreUnavailable:
    """Return our error for one of the driver's: whether an operator must mend something, and what."""
    reason = _reason(error)
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return StartupError(f"Postgres refuses the user or the password of TEAMTURN_POSTGRES_URL ({reason})")
        case asyncpg.InvalidCatalogNameError():
            return StartupError(
                f"Postgres has no such database ({reason}): create it, or correct TEAMTURN_POSTGRES_URL"
            )
        case asyncpg.TargetServerAttributeNotMatched():
            return StoreUnavailable(
                f"Postgres at {address(url)} takes no writes: it is a stand-by, or default_transaction_read_only is set"
            )
        case asyncpg.ProtocolViolationError() if "startup parameter" in str(error):
            # What PgBouncer says to each that it is not told to ignore.
            return StartupError(
                f"a connection pooler answers at {address(url)} ({reason}): give the direct address of Postgres in "
                "TEAMTURN_POSTGRES_URL"
            )
    if mistake := tls_mistake(error):
        files = "sslmode=, sslrootcert=, sslcert= and sslkey= in TEAMTURN_POSTGRES_URL"
        return StartupError(f"Postgres at {address(url)}: {mistake} ({files})")
    if not isinstance(error, _TRY_AGAIN) or isinstance(error, asyncpg.ClientConfigurationError):
        return StartupError(f"TEAMTURN_POSTGRES_URL can't be used: {reason}")
    return StoreUnavailable(
        f"Postgres can't be reached at {address(url)} ({reason}): is it running, and is TEAMTURN_POSTGRES_URL right?"
    )


def translated(error: Exception) -> Exception:
    """Return our error for one of the driver's: what it means for the turn whose statement failed."""
    if isinstance(error, asyncpg.UniqueViolationError):
        # The run_id was taken between claim and commit, in another session.
        return ClaimOutdated(_reason(error))
    if isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] in _ROW_AT_FAULT:
        return StatementRefused(_reason(error))
    if isinstance(error, asyncpg.DiskFullError):
        return StoreFull(_reason(error))
    return StoreUnavailable(_reason(error))


def application_name(role: str) -> str:
    """Return what pg_stat_activity shows of a connection: who, where, and what for."""
    return f"teamturn {role} {worker_name()}"


def worker_name() -> str:
    """Return what this process is called in the fleet: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def servers_of(url: SecretStr) -> list[tuple[str | None, int | None]]:
    """Return the hosts that a URL leads to, and their ports; a host that is None is a Unix socket of this machine.

    A URL that names none before its path can do so in the parameter `host`, or leave it to PGHOST.
    """
    named = hosts_of(url.get_secret_value())
    if any(host for host, _ in named):
        return named
    elsewhere = dict(parse_qsl(urlsplit(url.get_secret_value()).query)).get("host") or os.environ.get("PGHOST")
    # A socket's directory, or hosts as before the path.
    return [(one, None) if one.startswith("/") else hosts_of(f"//{one}")[0] for one in (elsewhere or "").split(",")]


def address(url: SecretStr) -> str:
    """Return the host and port of a URL, for people."""
    return ", ".join(f"{host}:{port or 5432}" for host, port in servers_of(url))
