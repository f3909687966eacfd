"""`deploy/bench`: measure, and say what was found."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

from pydantic import JsonValue
from rich.console import Console

from tests.benchmarks import agno_turns, conversation, fleet, in_flight, lone, model_turns, paces, report, sizing
from tests.benchmarks.figures import FIGURES, Finding
from tests.benchmarks.machine import described
from tests.benchmarks.plan import QUICK, Plan
from tests.benchmarks.stage import Stage, template_of
from worker.sandbox import Sandbox, SandboxError
from worker.sandbox.demo import Progress

Benchmark = Callable[[Stage], Awaitable[list[Finding]]]

BENCHMARKS: Final[Mapping[Benchmark, Collection[str]]] = {
    paces.overheads: ("overhead_vs_handwritten", "overhead_vs_unsafe"),
    lone.flat_10000: ("flat_10000",),
    paces.handoff: ("handoff",),
    lone.latency_vs_handwritten: ("latency_vs_handwritten",),
    conversation.cancel_latency: ("cancel_latency",),
    conversation.interrupt_latency: ("interrupt_latency",),
    conversation.stream_latency: ("stream_latency",),
    in_flight.in_flight: ("in_flight",),
    model_turns.in_flight_model: ("in_flight_model",),
    sizing.memory_per_turn: ("memory_per_turn",),
    agno_turns.vs_agno_turns: ("vs_agno_turns",),
    agno_turns.vs_agno_flat_1000: ("vs_agno_flat_1000",),
    agno_turns.vs_agno_handoff: ("vs_agno_handoff",),
    fleet.scale_out_4: ("scale_out_4",),
    fleet.rebalance_gap: ("rebalance_gap",),
}

_DESCRIPTION = """\
From a bare machine to the figures of the README: makes .venv on the first run,
starts a RabbitMQ and a Postgres of its own, and measures the worker beside its
peers: a hand-written loop, and a hand-written consumer of Agno.

What is compared runs alternating, in several rounds, on durable quorum queues
with confirmed replies and Postgres's default durability. A value is made of
the rounds' medians. Keep the machine quiet meanwhile: the peers, RabbitMQ and
Postgres share its cores.
"""
_EPILOG = """\
figures:
{figures}

examples:
  deploy/bench                          all of it, some ten minutes
  deploy/bench --only handoff flat_10000
  deploy/bench --json bench.json --chart bench.svg
  deploy/bench --quick                  two minutes: whether it works; its
                                        figures say nothing

output: progress, settings and the table on standard error; on standard output
a line a figure, name: value

exit code: 0 if every figure was measured, reached or not; 1 if one could not
be, 2 if something is missing, 130 on Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    # So that a SIGTERM leaves by the same door as an error.
    signal.signal(signal.SIGTERM, _leave)
    try:
        return _run(options, console)
    except SandboxError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped, and cleaned up.")
        return 130


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, FIGURES))
    parser = argparse.ArgumentParser(
        prog="deploy/bench",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(figures="\n".join(f"  {name:{width}}  {one.what}" for name, one in FIGURES.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=FIGURES, help="these figures alone")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="of what is measured in rounds; the default is 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there, with every round")
    parser.add_argument("--chart", type=_picture, metavar="FILE", help="draw what was compared: a .png or .svg")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep there what the programs have logged")
    parser.add_argument("--quick", action="store_true", help="a smoke run, much too short for figures")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text} is no .png or .svg")
    return path


def _run(options: argparse.Namespace, console: Console) -> int:
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = plan.with_rounds(options.rounds)
    wanted = set(options.only or FIGURES)
    progress = Progress(console)
    with ExitStack() as stack:
        logs = options.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="teamturn-bench-")))
        logs.mkdir(parents=True, exist_ok=True)
        sandbox = stack.enter_context(Sandbox(progress))
        findings, failures, machine = asyncio.run(_measured(sandbox, logs, plan, wanted, progress))
    _tell(console, findings, failures, machine)
    if options.quick:
        console.print("[bold]This was a smoke run: its values say nothing.[/]")
    if options.json:
        report.write_json(options.json, report.as_json(findings, failures, machine))
    if options.chart:
        from tests.benchmarks.chart import draw  # noqa: PLC0415 - loads a plotting library

        draw(findings, options.chart)
    return 1 if failures else 0


async def _measured(
    sandbox: Sandbox, logs: Path, plan: Plan, wanted: set[str], progress: Progress
) -> tuple[list[Finding], dict[str, str], Mapping[str, JsonValue]]:
    findings: list[Finding] = []
    failures: dict[str, str] = {}
    async with template_of(sandbox) as template:
        stage = Stage(sandbox, template, logs, plan, progress)
        machine = await described(stage)
        for benchmark, names in BENCHMARKS.items():
            missing = wanted.intersection(names)
            if not missing:
                continue
            progress(f"measuring {', '.join(sorted(missing))}")
            try:
                found = await benchmark(stage)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be measured
                progress(f"this failed: {type(error).__name__}: {error}")
                failures |= dict.fromkeys(missing, str(error).splitlines()[0] if str(error) else type(error).__name__)
            else:
                findings += [one for one in found if one.name in wanted]
    return findings, failures, machine


def _tell(
    console: Console, findings: Sequence[Finding], failures: Mapping[str, str], machine: Mapping[str, JsonValue]
) -> None:
    console.print()
    for name, value in machine.items():
        told = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        console.print(f"{name}: {told}", markup=False, soft_wrap=True)
    console.print()
    report.show_details(console, findings)
    console.print()
    console.print(report.table(findings, failures))
    for line in report.lines(findings):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
