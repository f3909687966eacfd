"""deploy/examples/batch.py: a file of rows on a prefix of its own, killed and started again."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.acceptance.stage import QUICKER, Stage, json_of, staged
from tests.support.commands import COMPLETED, FAILED, MISTAKE, Ended, too_wide
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = ROOT / "deploy" / "examples" / "batch.py"
IN_FLIGHT = 4
ROWS = 12
OPEN = 6
"""So many rows are answered at once; the others wait at gates."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A worker on a prefix of its own, as a batch has one."""
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates")) as stage:
        yield stage


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows, whose name is the test's own: it is the batch's."""
    return tmp_path / f"{tmp_path.name}.csv"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return tmp_path / "answers.csv"


def write(rows: Path, *texts: str) -> None:
    with rows.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((f"row-{number}", text) for number, text in enumerate(texts))


def fill(file: Path, text: str) -> None:
    file.write_bytes(text.encode())


def content(file: Path) -> str:
    """What is in a file; nothing where it isn't there."""
    return file.read_bytes().decode() if file.exists() else ""


def records(answers: Path) -> list[dict[str, str]]:
    with answers.open(newline="") as file:
        return list(csv.DictReader(file))


def words(stage: Stage, rows: Path, answers: Path, team: str, *more: str) -> list[str]:
    return [
        *(str(PROGRAM), str(rows), str(answers), "--team", team, "--key", "id", "--input", "{text}"),
        *("--prefix", stage.settings.prefix, "--in-flight", str(IN_FLIGHT), *more),
    ]


async def started(stage: Stage, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        env=environment_of(stage.settings, **QUICKER),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Ended:
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, out.decode(), err.decode()


async def batch(stage: Stage, rows: Path, answers: Path, team: str, *more: str) -> Ended:
    return await ended(await started(stage, *words(stage, rows, answers, team, *more)))


async def test_each_row_has_its_answer(stage: Stage, rows: Path, answers: Path) -> None:
    write(rows, "plain", 'with "quotes", commas', "two\nlines", "séance ✓")
    code, out, err = await batch(stage, rows, answers, "echo")
    assert (code, out) == (COMPLETED, ""), err
    assert {one["key"]: (one["status"], one["answer"], one["error"]) for one in records(answers)} == {
        "row-0": ("COMPLETED", "plain", ""),
        "row-1": ("COMPLETED", 'with "quotes", commas', ""),
        "row-2": ("COMPLETED", "two\nlines", ""),
        "row-3": ("COMPLETED", "séance ✓", ""),
    }


async def test_killed_and_started_again_each_row_is_answered_once_and_executed_once(
    stage: Stage, rows: Path, answers: Path
) -> None:
    gates = [f"{rows.stem}-{number}" for number in range(ROWS)]
    write(rows, *gates)
    for gate in gates[:OPEN]:
        stage.gates.open(gate)
    first = await started(stage, *words(stage, rows, answers, "gated"))
    await eventually(lambda: answers.exists() and len(records(answers)) == OPEN)
    await asyncio.gather(*(stage.gates.reached(gate) for gate in gates[OPEN : OPEN + IN_FLIGHT]))
    first.kill()
    await first.communicate()
    assert not any(stage.gates.visits(gate) for gate in gates[OPEN + IN_FLIGHT :]), "more than so many were in flight"
    with answers.open("ab") as file:
        file.write(b'row-6,COMPLETED,"half an ans')  # as a kill in the middle of a write leaves it
    for gate in gates:
        stage.gates.open(gate)
    code, _, err = await batch(stage, rows, answers, "gated")
    assert code == COMPLETED, err
    assert Counter(one["key"] for one in records(answers)) == Counter(f"row-{number}" for number in range(ROWS))
    assert {one["answer"] for one in records(answers)} == {f"through {gate}" for gate in gates}
    assert [stage.gates.visits(gate) for gate in gates] == [1] * ROWS
    found = await stage.database.fetch("select runs from ai.sessions where runs::text like $1", f"%{rows.stem}-%")
    assert [len(json_of(one["runs"])) for one in found] == [1] * ROWS, "as many sessions as rows, of a turn each"
    assert f"{ROWS}/{ROWS}" in err


async def test_a_batch_that_is_done_asks_nothing_when_it_is_started_again(
    stage: Stage, rows: Path, answers: Path
) -> None:
    write(rows, "a", "b")
    await batch(stage, rows, answers, "echo")
    before = content(answers)
    # A team that nobody has: a request would be refused.
    code, _, _ = await batch(stage, rows, answers, "nobody")
    assert (code, content(answers)) == (COMPLETED, before)


async def test_a_row_that_failed_is_among_the_answers_with_its_error(stage: Stage, rows: Path, answers: Path) -> None:
    write(rows, "hello")
    code, _, err = await batch(stage, rows, answers, "broken")
    (one,) = records(answers)
    assert (code, one["status"], one["answer"]) == (FAILED, "ERROR", "")
    assert one["error"].startswith("executor_failed: ")
    assert "1 failed" in err


async def test_a_refused_row_stops_the_batch_with_its_code_and_can_be_asked_under_another_name(
    stage: Stage, rows: Path, answers: Path
) -> None:
    write(rows, "hello")
    code, _, err = await batch(stage, rows, answers, "nobody")
    assert (code, records(answers)) == (MISTAKE, [])
    assert "unknown_target" in err
    assert "--name" in err
    code, _, _ = await batch(stage, rows, answers, "echo", "--name", f"{rows.stem}-again")
    assert (code, [one["answer"] for one in records(answers)]) == (COMPLETED, ["hello"])


async def test_two_batches_do_not_write_the_same_answers(stage: Stage, rows: Path, answers: Path) -> None:
    write(rows, rows.stem)
    first = await started(stage, *words(stage, rows, answers, "gated"))
    await stage.gates.reached(rows.stem)
    code, _, err = await batch(stage, rows, answers, "gated")
    assert code == MISTAKE
    assert "another batch" in err
    stage.gates.open(rows.stem)
    assert (await ended(first))[0] == COMPLETED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,text\na,x\na,y\n", "the key 'a' is there twice"),
        ("id,words\na,x\n", "the columns are id, words"),
        ("text\nx\n", "the columns are text"),
    ],
)
async def test_a_mistake_in_the_rows_is_one_line(stage: Stage, rows: Path, answers: Path, text: str, says: str) -> None:
    fill(rows, text)
    code, out, err = await batch(stage, rows, answers, "echo")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert says in err
    assert not content(answers)


@pytest.mark.parametrize("text", ["dear diary\nno end", "no line", "key,status,answer,error,mine\r\n"])
async def test_a_file_that_holds_something_else_is_left_alone(
    stage: Stage, rows: Path, answers: Path, text: str
) -> None:
    write(rows, "hello")
    fill(answers, text)
    code, _, err = await batch(stage, rows, answers, "echo")
    assert (code, content(answers)) == (MISTAKE, text)
    assert "no file of answers" in err


async def test_help_teaches_how_to_begin_and_how_to_go_on(stage: Stage) -> None:
    code, out, _ = await ended(await started(stage, str(PROGRAM), "--help"))
    assert code == COMPLETED
    assert too_wide(out) == []
    for word in ("TEAMTURN_PREFIX=batch", "python batch.py", "start it again", "run_id", "--name"):
        assert word in out
