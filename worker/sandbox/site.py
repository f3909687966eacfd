"""The place where the sandbox's programs run: a temporary directory, their logs, and an end for all of it."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.sandbox.errors import SandboxError, StartError
from worker.sandbox.reaper import Reaper

_LAST_LINES = 15
_TAKEN_PORTS = frozenset({5672, 5432, 8080})
# Below the range from which systems give out client ports (32768 and up). A client that tries to reconnect to
# a stopped server on such a port can be given that very port, connect to itself, and so keep the server out.
_PORTS = range(15000, 30000)


def free_port() -> int:
    """Return a port on 127.0.0.1 that was free a moment ago; who uses it must cope with losing it."""
    for _ in range(200):
        port = random.choice(_PORTS)  # noqa: S311 - no secret
        if port in _TAKEN_PORTS:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SandboxError(f"No free port between {_PORTS.start} and {_PORTS.stop} was found on 127.0.0.1.")


def others_can_enter(directory: Path) -> bool:
    """Tell whether every user can reach what lies in this directory."""
    return all(parent.stat().st_mode & 0o001 for parent in (directory, *directory.parents))


def temporary_base() -> Path:
    """Return TMPDIR, or /tmp if that one would not do.

    RabbitMQ's scripts do not take every path, and if Postgres runs as another user, that one has to get in.
    """
    base = Path(tempfile.gettempdir()).resolve()
    if " " in str(base) or (os.geteuid() == 0 and not others_can_enter(base)):
        return Path("/tmp")  # noqa: S108 - what we make in it is made by mkdtemp
    return base


@dataclass(frozen=True)
class OwnedProcess:
    """A program that the sandbox has started."""

    name: str
    log: Path
    _log_start: int
    _popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id, which is its group's too."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """Return what it has written since its start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def last_lines(self) -> str:
        """Return the end of it, indented."""
        lines = self.output().strip().splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition; StartError if the program ends first, or when the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.exit_code is not None:
                raise StartError(f"{self.name} ended with exit code {self.exit_code}:", self.last_lines())
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not answer within {seconds:g} s:", self.last_lines())
            time.sleep(0.05)

    def end(self, stop_signal: signal.Signals, seconds: float = 60) -> None:
        """Send the signal to the whole group and wait for the program's end; SandboxError if it stays."""
        if self.exit_code is None:
            os.killpg(self.pid, stop_signal)
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            text = f"{self.name} was still running {seconds:g} s after {stop_signal.name}:\n{self.last_lines()}"
            raise SandboxError(text) from None


class Site:
    """A temporary directory and the programs in it. `close` ends all; so does the death of this process."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.name = f"teamturn-{os.getpid()}-{secrets.token_hex(3)}"
        self.reaper = Reaper()
        self.directory = temporary_base() / self.name
        self.reaper.watch_directory(self.directory)
        self.directory.mkdir(mode=0o700)
        self.directory.chmod(0o711)  # whatever the umask: Postgres may run as another user
        self._processes: list[OwnedProcess] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGKILL,
    ) -> OwnedProcess:
        """Start a program in a session of its own, out of Ctrl-C's reach; its output goes to a log file.

        `stop_signal` ends it when the site is closed; `user` is a (uid, gid) other than ours.
        """
        log = self.directory / f"{name}.log"
        uid, gid = user or (None, None)
        with log.open("ab") as output:
            log_start = output.tell()
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd or self.directory,
                start_new_session=True,
                user=uid,
                group=gid,
                extra_groups=[] if user else None,
            )
        process = OwnedProcess(name, log, log_start, popen)
        self.reaper.watch_process(process.pid, stop_signal)
        self._processes.append(process)
        return process

    def end(self, process: OwnedProcess, stop_signal: signal.Signals) -> None:
        """End one program now."""
        process.end(stop_signal)
        self.reaper.forget_process(process.pid)
        self._processes.remove(process)

    def close(self) -> None:
        """End all programs, last started first, and remove the directory. Returns when that is done."""
        self.reaper.begin()
        while not self.reaper.is_done():
            for process in self._processes:
                process.exit_code  # noqa: B018 - takes leave of an ended child, for which the reaper waits
            time.sleep(0.01)
        for process in self._processes:
            process.wait_until(lambda process=process: process.exit_code is not None, 1)  # type: ignore[misc]
        if self.directory.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.report(f"Not everything in {self.directory} could be removed.")
