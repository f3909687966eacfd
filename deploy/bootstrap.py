"""Make `.venv` and install one of the pinned requirements files and the project itself into it.

Run by bootstrap.sh with the standard library alone:

    python3 -I deploy/bootstrap.py requirements.txt
    .venv/bin/python -I deploy/bootstrap.py --check requirements.txt    # exit 0 when nothing is to do

What is installed is written down in `.venv/teamturn.json`, last of all, so that a run that was interrupted is
made again from the start. A `.venv` made elsewhere (the project was moved) or by a Python that is gone is
made anew; one without that file is somebody else's, and is left alone. pip is used as configured.
"""

# ruff: noqa: INP001 - a program beside the packages, not one of them
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "teamturn.json"
LAST_LINES = 15
NO_NETWORK = ("NewConnectionError", "ConnectTimeout", "ProxyError", "name resolution", "from versions: none")


class BootstrapError(Exception):
    """What is wrong, in a sentence for people."""


def say(line: str) -> None:
    """Print a line of progress; standard output stays free for what was asked for."""
    print(line, file=sys.stderr, flush=True)


def digest(requirements: str) -> str:
    """Return what stands for all that this set's packages depend on."""
    inputs = [(ROOT / "pyproject.toml").read_bytes(), (ROOT / "deploy" / requirements).read_bytes()]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()


def installed() -> dict[str, str]:
    """Return the digests of what this environment holds; empty if it has to be made anew."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp["sets"] if stamp["root"] == str(ROOT) else {}


def is_ready(requirements: str) -> bool:
    """Tell whether nothing is left to do for this set."""
    return installed().get(requirements) == digest(requirements)


def write_stamp(sets: Mapping[str, str]) -> None:
    """Record what is installed, in one step."""
    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps({"root": str(ROOT), "sets": sets}))
    new.replace(STAMP)


@contextmanager
def sole_run() -> Iterator[None]:
    """Let one run at a time set up; the lock is on the directory itself, so that it leaves no file behind."""
    handle = os.open(ROOT / "deploy", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another run is setting up .venv; waiting for it.")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        say("This file system has no locks; do not run two set-ups at once.")
    try:
        yield
    finally:
        os.close(handle)


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a command and return what it printed; say each ten seconds that it is still at work."""
    started = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            say(f"  … {time.monotonic() - started:.0f} s")
        except KeyboardInterrupt:
            process.terminate()
            raise


def run_step(what: str, *command: str | Path, **env: str) -> None:
    """Run a slow command quietly; show what it said only when it fails."""
    say(f"{what} …")
    merged, pipe = {**os.environ, **env}, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=merged) as process:
        output = output_of(process)
    if process.returncode != 0:
        reason = f"failed with exit code {process.returncode}; its last lines:"
        if any(sign in output for sign in NO_NETWORK):
            reason = "could not reach a package index. The first run needs the network; the last lines:"
        told = [f"  {line}" for line in output.strip().splitlines() if not line.startswith("WARNING")]
        last = "\n".join(told[-LAST_LINES:])
        raise BootstrapError(f"{what}: this {reason}\n{last}")


def pip_install(what: str, *arguments: str | Path) -> None:
    """Install with this environment's pip, under the user's pip configuration."""
    for elsewhere in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        os.environ.pop(elsewhere, None)
    pip = (PYTHON, "-I", "-m", "pip", "install", "-q", "--progress-bar", "off")
    run_step(what, *pip, *arguments, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")


def make_environment() -> None:
    """Make an empty `.venv` that is marked as ours from its first moment to its last."""
    if VENV.is_symlink() or (VENV.exists() and not STAMP.exists()):
        raise BootstrapError(f"{VENV} was not made by this command. Move it away or delete it, then try again.")
    if importlib.util.find_spec("ensurepip") is None:
        install_venv_package()
    try:
        VENV.mkdir(exist_ok=True)
        write_stamp({})
        for entry in set(VENV.iterdir()) - {STAMP}:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as exc:
        hint = "copy the project to a directory of yours"
        raise BootstrapError(f"{exc.filename} can not be written ({exc.strerror}); {hint}.") from exc
    run_step(f"Making .venv with Python {sys.version.split()[0]}", sys.executable, "-I", "-m", "venv", VENV)


def install_venv_package() -> None:
    """Get the module that Debian keeps in a package of its own, or say how to."""
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise BootstrapError(
            f"{sys.executable} lacks the module ensurepip, and so can not make .venv. "
            f"On Debian or Ubuntu: sudo apt-get install {package}"
        )
    install = ("apt-get", "install", "-qy", "--no-install-recommends", package)
    run_step("Reading Debian's package lists", "apt-get", "update", "-q")
    run_step(f"Installing Debian's {package}", *install, DEBIAN_FRONTEND="noninteractive")


def works(python: Path) -> bool:
    """Tell whether this interpreter starts: its base may be gone."""
    return python.exists() and subprocess.run([python, "-I", "-c", ""], check=False).returncode == 0


def set_up(requirements: str) -> None:
    """Bring `.venv` to where `is_ready` holds."""
    sets = installed() if works(PYTHON) else {}
    if not sets:
        make_environment()
    wanted = digest(requirements)
    sets = {name: value for name, value in sets.items() if value == digest(name)}
    write_stamp({})  # what is interrupted from here on starts from nothing
    path = ROOT / "deploy" / requirements
    count = sum("==" in line for line in path.read_text().splitlines())
    # The file has all of them. With dependencies, pip 23 looks for the newest pydantic of another's pydantic[email],
    # and finds no hash of it.
    pip_install(f"Installing {count} pinned packages", "--no-deps", "--require-hashes", "-r", path)
    pip_install("Installing the project", "--no-deps", "--no-build-isolation", "-e", ROOT)
    write_stamp(sets | {requirements: wanted})


def main(arguments: Sequence[str]) -> int:
    """Run the command line above; return its exit code."""
    *flags, requirements = arguments
    if flags == ["--check"]:
        return 0 if is_ready(requirements) else 1
    try:
        with sole_run():
            if not (works(PYTHON) and is_ready(requirements)):
                set_up(requirements)
    except BootstrapError as exc:
        say(str(exc))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
