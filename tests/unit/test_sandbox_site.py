"""The sandbox's directory and programs, and that nothing of them stays, whatever becomes of their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.sandbox import site as site_module
from worker.sandbox.errors import StartError
from worker.sandbox.packages import PROJECT
from worker.sandbox.reaper import Reaper, _is_alive, read_kept, stop_kept
from worker.sandbox.site import Site, free_port, temporary_base


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(print)
    yield site
    site.close()


def _eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def test_what_runs_is_ended_and_what_was_written_is_removed() -> None:
    site = Site(print)
    processes = [site.start(f"sleeper{number}", ["sleep", "1000"]) for number in range(3)]
    site.close()
    assert [process.exit_code for process in processes] == [-signal.SIGKILL] * 3
    assert not site.directory.exists()


def test_a_program_that_ignores_its_signal_is_killed() -> None:
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1000; done"]
    reaper = Reaper(grace_seconds=0.2)
    with subprocess.Popen(stubborn, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        reaper.watch_process(process.pid, signal.SIGTERM)
        reaper.begin()
    assert process.returncode == -signal.SIGKILL
    _eventually(reaper.is_done)


def test_a_program_that_ends_too_soon_is_reported_with_its_last_lines(site: Site) -> None:
    process = site.start("failing", ["sh", "-c", "echo what is wrong; exit 3"])
    with pytest.raises(StartError, match=r"(?s)failing ended with exit code 3:.*what is wrong"):
        process.wait_until(lambda: False, 20)


def test_a_program_that_does_not_get_ready_is_reported(site: Site) -> None:
    process = site.start("slow", ["sh", "-c", "echo still at it; sleep 1000"])
    process.wait_until(lambda: "still" in process.output(), 20)
    with pytest.raises(StartError, match=r"(?s)slow did not answer within 0.1 s:.*still at it"):
        process.wait_until(lambda: False, 0.1)


def test_a_second_start_shows_only_its_own_output(site: Site) -> None:
    for word in ("first", "second"):
        process = site.start("echo", ["echo", word])
        process.wait_until(lambda process=process: process.exit_code is not None, 20)  # type: ignore[misc]
        assert process.output() == f"{word}\n"


def _owner(what_then: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own with a site and a sleeper in it; it prints their directory and process id."""
    program = """
        import os, signal, sys
        from worker.sandbox.site import Site
        site = Site(print)
        sleeper = site.start("sleeper", ["sleep", "1000"])
        print(site.directory, sleeper.pid, flush=True)
    """
    source = textwrap.dedent(program) + what_then
    return subprocess.Popen([sys.executable, "-c", source, *arguments], cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def _what_it_owns(owner: subprocess.Popen[str]) -> tuple[Path, int]:
    assert owner.stdout is not None
    directory, pid = owner.stdout.readline().split()
    return Path(directory), int(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_an_owner_that_was_killed(number: signal.Signals) -> None:
    with _owner("signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.pause()") as owner:
        directory, pid = _what_it_owns(owner)
        owner.send_signal(number)
    _eventually(lambda: not _is_alive(pid) and not directory.exists())


def test_ctrl_c_in_the_terminal_reaches_the_owner_alone(site: Site) -> None:
    process = site.start("sleeper", ["sleep", "1000"])
    assert os.getsid(process.pid) == process.pid
    assert os.getsid(site.reaper._process.pid) == site.reaper._process.pid


def test_what_is_kept_runs_on_until_it_is_stopped(tmp_path: Path) -> None:
    state_file = tmp_path / "state" / "sandbox.json"
    keep = "from pathlib import Path\nprint(site.reaper.keep(Path(sys.argv[1]), {'amqp_url': 'u'}))\nos._exit(0)"
    with _owner(keep, str(state_file)) as owner:
        directory, pid = _what_it_owns(owner)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "True\n"
    assert owner.returncode == 0
    about = read_kept(state_file)
    assert about is not None
    assert about["amqp_url"] == "u"
    assert state_file.stat().st_mode & 0o077 == 0
    assert _is_alive(pid)

    with _owner(keep, str(state_file)) as second:
        _what_it_owns(second)
        assert second.stdout is not None
        assert second.stdout.readline() == "False\n", "one kept sandbox at a time"

    assert stop_kept(state_file)
    assert not _is_alive(pid)
    assert not directory.exists()
    assert not state_file.exists()
    assert not stop_kept(state_file)


def test_a_state_file_that_no_reaper_holds_is_nothing_to_stop(tmp_path: Path) -> None:
    state_file = tmp_path / "sandbox.json"
    state_file.write_text(f'{{"reaper": "{os.getpid()}"}}')
    assert not stop_kept(state_file)
    assert not state_file.exists()


def test_ports_are_below_those_of_clients_and_never_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(15000 <= free_port() < 30000 for _ in range(20))
    monkeypatch.setattr(site_module, "_PORTS", [5672, 5432, 8080, 15432])
    assert {free_port() for _ in range(20)} == {15432}


def test_a_temporary_directory_with_a_space_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "with space"
    spaced.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spaced))
    assert temporary_base() == Path("/tmp")  # noqa: S108
