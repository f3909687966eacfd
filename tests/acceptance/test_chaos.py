"""`deploy/chaos` in short: every kind of fault once, at moments of a new seed, which is printed."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from tests.support.workers import ROOT

_SECONDS = 270
_ZERO = ("lost", "duplicated", "reordered", "replies_differ", "recorded_steps_repeated")
_PROMISED_TOO = (
    "cancels_ignored",
    "interrupts_ignored",
    "cancelled_unasked",
    "unstarted_executed",
    "events_repeated",
    "events_out_of_order",
    "events_missing",
    "events_differ",
    "stray_unlocks",
)
_BY_CHANCE = {"watched_resumed", "watched_to_the_letter"}
_CONTRACT = ["requests", *_ZERO, "kills", "broker_restarts", "postgres_restarts", "seconds"]


async def chaos(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run it; return its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.chaos", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.terminate()
        _, err = await process.communicate()
        print(err.decode())
        raise
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.timeout(_SECONDS + 30)
async def test_under_every_kind_of_fault_nothing_is_lost_repeated_or_out_of_order() -> None:
    code, out, err = await chaos("--seconds", "15", "--workers", "3")
    print(err)  # with the seed, and with where the logs are if it failed
    assert code == 0, out
    line = json.loads(out.splitlines()[-1])
    assert list(line)[: len(_CONTRACT)] == _CONTRACT
    assert {name: line[name] for name in _ZERO} == dict.fromkeys(_ZERO, 0)
    assert {name: line[name] for name in _PROMISED_TOO} == dict.fromkeys(_PROMISED_TOO, 0)
    assert all(number > 0 for name, number in line["tried"].items() if name not in _BY_CHANCE)
    assert line["requests"] > 100
    assert line["kills"] > 0
    assert line["broker_restarts"] > 0
    assert line["postgres_restarts"] > 0
    assert any(name.startswith(("kill_after_", "kill_in_")) for name in line["faults"])
    assert f"seed {line['seed']}" in err


async def test_it_does_not_crash_servers_that_are_somebody_elses() -> None:
    code, out, err = await chaos("--seconds", "25", TEAMTURN_SANDBOX="url")
    assert (code, out) == (2, "")
    assert "needs servers that it may crash and restart" in err
    assert "Traceback" not in err
