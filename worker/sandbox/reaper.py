"""A small process that outlives the sandbox's owner and ends what the owner started.

It is told on its standard input what there is: processes, directories, containers. When that input ends (the
owner closed it, or died in whatever way, SIGKILL included) it ends all of it, last started first. So there is
one way of cleaning up, and every run takes it. A kept sandbox differs in one thing only: its reaper waits for
a SIGTERM (`deploy/demo --stop`) first.

The state file of a kept sandbox is locked by its living reaper. A file that nobody locks is left over from a
machine that was switched off, and names nothing that runs: nothing is killed for having inherited a number.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_GRACE_SECONDS = 10.0
_DIRECTORY_SECONDS = 5


class Reaper:
    """The owner's side: what to end, and when. A program gets `grace_seconds` between its signal and SIGKILL."""

    def __init__(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        # A session of its own: Ctrl-C in the terminal must not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(grace_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            text=True,
        )

    def _tell(self, *words: object) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for above
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(words), file=self._process.stdin, flush=True)

    def watch_process(self, pid: int, stop_signal: signal.Signals) -> None:
        """End this process and its group: first by the signal, in the end by SIGKILL."""
        self._tell("process", pid, int(stop_signal))

    def forget_process(self, pid: int) -> None:
        """Say that the owner has seen this process end."""
        self._tell("forget", pid)

    def watch_directory(self, directory: Path) -> None:
        """Remove this directory, after the processes."""
        self._tell("directory", str(directory))

    def watch_container(self, container_id: str) -> None:
        """Remove this container and its volumes."""
        self._tell("container", container_id)

    def keep(self, state_file: Path, about: Mapping[str, str]) -> bool:
        """Let everything live on until `stop_kept`; False if another kept sandbox holds the state file."""
        self._tell("keep", str(state_file), dict(about))
        assert self._process.stdout is not None  # noqa: S101
        return self._process.stdout.readline() == "kept\n"

    def begin(self) -> None:
        """Begin to end everything; `is_done` tells when it has."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def is_done(self) -> bool:
        """Tell whether everything has ended. The owner has to wait for its own children meanwhile."""
        return self._process.poll() is not None


def read_kept(state_file: Path) -> dict[str, str] | None:
    """Return what is known about the kept sandbox that is running; None if there is none."""
    try:
        with state_file.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            state_file.unlink()  # nobody locks it: it names nothing that runs
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        about: dict[str, str] = json.loads(state_file.read_text())
        return about


def stop_kept(state_file: Path, seconds: float = 60) -> bool:
    """Stop the kept sandbox and wait for its end; False if none was running or it did not end in time."""
    about = read_kept(state_file)
    if about is None:
        return False
    os.kill(int(about["reaper"]), signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while read_kept(state_file) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# What follows runs in the reaper's own process.


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None without a /proc, or without the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Return what tells this process from a later one with the same number, where the system says."""
    stat = _stat(pid)
    return stat[19] if stat else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = _stat(pid)
    return stat is None or stat[0] != "Z"


def _end_process(pid: int, stop_signal: int, start_time: str | None, grace_seconds: float) -> None:
    if not _is_alive(pid) or _start_time(pid) != start_time:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, stop_signal)
        deadline = time.monotonic() + grace_seconds
        while _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(pid, signal.SIGKILL)


def _remove_directory(directory: str) -> None:
    """Remove it; a server's helpers may still be writing for a moment after their server has ended."""
    deadline = time.monotonic() + _DIRECTORY_SECONDS
    while os.path.exists(directory) and time.monotonic() < deadline:  # noqa: PTH110
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.01)


def _remove_container(container_id: str) -> None:
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - only who has containers has it

    DockerClient().client.containers.get(container_id).remove(force=True, v=True)


def _lock_state(path: str, about: dict[str, str]) -> IO[str] | None:
    state_file = Path(path)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state_file.touch(mode=0o600)  # it holds passwords
    stream = state_file.open("r+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    stream.truncate()
    json.dump(about | {"reaper": str(os.getpid())}, stream)
    stream.flush()
    return stream


class _Charge:
    """What there is to end."""

    def __init__(self) -> None:
        self.processes: dict[int, tuple[int, str | None]] = {}
        self.directories: list[str] = []
        self.containers: list[str] = []
        self.state: IO[str] | None = None

    def take(self, words: list[Any]) -> None:
        """Do what one line of the owner says."""
        match words:
            case ["process", int(pid), int(stop_signal)]:
                self.processes[pid] = (stop_signal, _start_time(pid))
            case ["forget", int(pid)]:
                self.processes.pop(pid, None)
            case ["directory", str(directory)]:
                self.directories.append(directory)
            case ["container", str(container_id)]:
                self.containers.append(container_id)
            case ["keep", str(path), dict(about)]:
                self.state = _lock_state(path, about)
                print("kept" if self.state else "held", flush=True)
            case _:
                raise ValueError(words)

    def end(self, grace_seconds: float) -> None:
        """End it."""
        for pid, (stop_signal, start_time) in reversed(self.processes.items()):
            _end_process(pid, stop_signal, start_time, grace_seconds)
        for container_id in self.containers:
            with contextlib.suppress(Exception):  # the engine may be gone, and the directories still have to go
                _remove_container(container_id)
        for directory in self.directories:
            _remove_directory(directory)
        if self.state:
            Path(self.state.name).unlink(missing_ok=True)
            self.state.close()


def _reap() -> None:
    # SIGTERM is waited for, not suffered; the others are a terminal's, and not ours.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    charge = _Charge()
    for line in sys.stdin:
        charge.take(json.loads(line))
    if charge.state:
        signal.sigwait({signal.SIGTERM})
    charge.end(grace_seconds=float(sys.argv[1]))


if __name__ == "__main__":
    _reap()
