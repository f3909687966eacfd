"""Getting what is missing: Debian's packages, and wheels as pinned in deploy/requirements-*.txt."""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.sandbox.errors import SandboxError, WayClosedError

PROJECT = Path(__file__).resolve().parents[2]
_POLICY = Path("/usr/sbin/policy-rc.d")
_LAST_LINES = 15


def install_debian_package(package: str, report: Callable[[str], None]) -> None:
    """Install a Debian package without starting its service; WayClosedError where that can't be done."""
    if shutil.which("apt-get") is None:
        raise WayClosedError("apt-get is not on this machine")
    if os.geteuid() != 0:
        raise WayClosedError(f"only root can run: apt-get install {package}")
    with _services_stay_down():
        report(f"Installing Debian's {package} …")
        # `update` fails as soon as one of the machine's sources does; the lists that it got may do.
        _run(["apt-get", "update", "-q"])
        failure = _run(["apt-get", "install", "-qy", "--no-install-recommends", package])
        if failure:
            raise SandboxError(f"apt-get install {package} failed:\n{failure}")


def install_wheels(requirements: str, report: Callable[[str], None]) -> None:
    """Install a pinned file's wheels into this environment, alone, unless they are there in that version.

    WayClosedError if this environment has no pip or the file is not here; SandboxError if pip fails.
    """
    path = PROJECT / "deploy" / requirements
    if not path.exists():
        raise WayClosedError(f"{path} is not here; it comes with the project's source")
    pinned = re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE)
    if all(_is_installed(name, version) for name, version in pinned):
        return
    # What an interrupted installation has left has no record to be uninstalled by.
    flags = ["--no-deps", "--require-hashes", "--ignore-installed", "-q", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "install", *flags, "-r", str(path)]
    names = " and ".join(name for name, _ in pinned)
    report(f"Installing {names} …")
    failure = _run(command)
    if failure:
        raise SandboxError(
            f"Installing {names} failed; it takes a package index, this once. pip's last lines:\n{failure}"
        )
    importlib.invalidate_caches()


def _is_installed(name: str, version: str) -> bool:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    # pip writes the list of files last.
    return distribution.version == version and distribution.files is not None


@contextmanager
def _services_stay_down() -> Iterator[None]:
    """Ask Debian's installation scripts not to start what they install: a node on port 5672 is not wanted."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    try:
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink()


def _run(command: list[str]) -> str | None:
    """Run a command quietly; return the last lines of what it said if it failed."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PIP_USER": "0", "PIP_NO_INPUT": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line and not line.startswith("WARNING")]
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
