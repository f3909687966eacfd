"""`deploy/bench` as it is called: a smoke run, whose figures say nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.benchmarks.figures import FIGURES
from tests.support.workers import ROOT

_SECONDS = 480


async def bench(*arguments: str) -> tuple[int, str, str]:
    """Run it; return its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        ROOT / "deploy" / "bench",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.slow
@pytest.mark.timeout(_SECONDS + 20)
async def test_a_smoke_run_prints_a_line_for_every_figure(tmp_path: Path) -> None:
    code, out, err = await bench("--quick", "--json", str(tmp_path / "bench.json"), "--chart", str(tmp_path / "a.svg"))
    assert code == 0, err
    names = [line.partition(": ")[0] for line in out.splitlines()]
    assert sorted(names) == sorted(FIGURES)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert sorted(written["figures"]) == sorted(FIGURES)
    assert (tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")
