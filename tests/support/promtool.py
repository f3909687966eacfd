"""Prometheus's promtool: this machine's, or the one of Debian's package, taken out without installing it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def promtool(*words: str, cwd: Path) -> None:
    """Run it, and fail with what it says if it is not content. Skips the test where it can't be had, and says why."""
    done = subprocess.run([_have(), *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _have() -> str:
    if (found := shutil.which("promtool")) is not None:
        return found
    place = Path(tempfile.gettempdir()) / f"teamturn-promtool-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        pytest.skip(f"promtool is not on this machine, and {place} is somebody else's")
    # One at a time: the tests run in several processes.
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = place / "promtool"
        if not program.exists():
            _take_out(program)
    return str(program)


def _take_out(program: Path) -> None:
    """Download Debian's package prometheus (19 MB) and take its promtool; it needs nothing else of it."""
    if shutil.which("apt-get") is None:
        pytest.skip("promtool is not on this machine, nor is apt-get, to get Debian's package prometheus")
    with tempfile.TemporaryDirectory(dir=program.parent) as directory:
        # Without lists there is nothing to download; only root can get them, and old ones may do.
        failure = _run(["apt-get", "download", "-q", "prometheus"], directory)
        if failure and os.getuid() == 0:
            _run(["apt-get", "update", "-q"], directory)
            failure = _run(["apt-get", "download", "-q", "prometheus"], directory)
        packages = list(Path(directory).glob("prometheus_*.deb"))
        if failure or not packages:
            pytest.skip(f"promtool is not on this machine, and apt-get download prometheus failed: {failure}")
        failure = _run(["dpkg-deb", "-x", str(packages[0]), "."], directory)
        assert failure is None, failure
        (Path(directory) / "usr" / "bin" / "promtool").rename(program)


def _run(command: list[str], directory: str) -> str | None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
