"""REFERENCE.md: written from the code, complete, and up to date."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.mcp import MCPToolset

import teamturn
from schemas.errors import ErrorCode
from schemas.replies import RunReply
from schemas.requests import RunRequest
from tests.support.workers import ROOT
from worker.team.single_agent import SingleAgent
from worker.team.summary import SessionSummary
from worker.team.team import Team
from worker.team.workflow import Step, Workflow

GENERATOR = ROOT / "deploy" / "reference.py"
RECIPES = ROOT / "deploy" / "examples" / "recipes.py"
NAMES = ["support", "panel", "invoice", "shop", "report", "steady"]
CLASSES = [Team, SingleAgent, Workflow, Step, SessionSummary, RunRequest, RunReply]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(GENERATOR))


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "REFERENCE.md").read_text(encoding="utf-8")


def _section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"REFERENCE.md has no section {heading}"
    return found[1]


_HIDDEN = frozenset({"steps", "origin", "origin_id", "written", "id_seed", "whole_history", "details", "events"})
"""The fields of a Turn that are no executor's business."""


def _rows(section: str) -> list[list[str]]:
    """The rows of a section's tables as they are rendered, without their heads."""
    cells = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    return [row for row, after in zip(cells, [*cells[1:], []], strict=True) if "---" not in row and "---" not in after]


def _blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def _check(cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, GENERATOR, "--check"], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_file_is_what_the_generator_writes_now(text: str, generator: dict[str, Any], tmp_path: Path) -> None:
    assert text == generator["reference"](), "run .venv/bin/python deploy/reference.py"
    checked = _check(tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("there", ["another text", None])
def test_check_says_what_to_run_where_the_file_is_out_of_date(
    there: str | None, generator: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "REFERENCE.md"
    if there is not None:
        file.write_text(there)
    main = generator["main"]
    monkeypatch.setitem(main.__globals__, "REFERENCE", file)
    monkeypatch.setitem(main.__globals__, "SCHEMAS", tmp_path / "json")
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    with pytest.raises(SystemExit, match=r"out of date: run \.venv/bin/python deploy/reference\.py"):
        main()
    assert (file.read_text() if file.exists() else None) == there
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    main()
    assert file.read_text(encoding="utf-8") == generator["reference"]()


PUBLIC = {name: getattr(teamturn, name) for name in teamturn.__all__}
ERRORS = [name for name, found in PUBLIC.items() if isinstance(found, type) and issubclass(found, Exception)]


def test_every_error_that_a_producer_can_catch_says_when_it_is_raised(text: str) -> None:
    rows = {row[0]: row[1] for row in _rows(_section(text, "What RunClient raises"))}
    assert rows.keys() == {f"`{name}`" for name in ERRORS}
    assert all(len(meaning) > len("meaning") for meaning in rows.values())


@pytest.mark.parametrize("name", [name for name in teamturn.__all__ if name not in ERRORS])
def test_every_public_name_has_a_section_with_a_row_a_parameter_or_field(name: str, text: str) -> None:
    public = getattr(teamturn, name)
    described = {row[0] for row in _rows(_section(text, name))}
    fields = getattr(public, "model_fields", None) or inspect.signature(public).parameters
    shown = set(fields) - _HIDDEN if name == "Turn" else set(fields)
    assert {f"`{one}`" for one in shown} <= described


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: str(made.__name__))
def test_every_parameter_of_a_public_class_says_what_it_means(made: type, text: str) -> None:
    for name, _type, _default, meaning in _rows(_section(text, made.__name__)):
        assert len(meaning) > len("meaning"), name
        assert not meaning.startswith("As for a Team"), name


def test_types_and_defaults_are_those_of_the_code(text: str) -> None:
    team = {row[0]: row[1:3] for row in _rows(_section(text, "Team"))}
    assert team["`id`"] == ["`str`", "required"]
    assert team["`mode`"] == ["`Mode`", '`"coordinate"`']
    assert team["`retries`"] == ["`int | AgentRetries | None`", "`None`"]
    assert team["`output_type`"] == ["`OutputSpec[Any]`", "`str`"]
    request = {row[0]: row[1:3] for row in _rows(_section(text, "RunRequest"))}
    assert request["`input`"] == ["`Input`", "required"]
    assert request["`metadata`"] == ["`dict[str, JsonValue]`", "`{}`"]
    types = {row[0]: row[1] for row in _rows(_section(text, "Types"))}
    assert types["`Mode`"] == '`"coordinate" | "route" | "broadcast"`'


def test_types_are_written_for_readers(text: str) -> None:
    tables = "\n".join(line for line in text.partition("\n## Recipes")[0].splitlines() if line.startswith("|"))
    assert not re.search(r"typing\.\w|ForwardRef|<class|Annotated|Literal\[|<object|NoneType| at 0x", tables)


def test_a_workflow_s_limits_are_a_team_s_and_what_is_said_beside(text: str) -> None:
    team, workflow = ({row[0]: row[3] for row in _rows(_section(text, name))} for name in ("Team", "Workflow"))
    assert workflow["`usage_limits`"] == team["`usage_limits`"] + " Of all steps together."
    assert workflow["`timeout`"] == team["`timeout`"]


def test_every_error_code_is_there_once_and_says_what_it_means(text: str) -> None:
    codes = [(row[0], len(row[1]) > 1) for row in _rows(_section(text, "Error codes"))]
    assert sorted(codes) == sorted((f"`{code.value}`", True) for code in ErrorCode)


def test_what_agno_calls_otherwise_is_a_parameter_of_ours(text: str) -> None:
    rows = _rows(_section(text, "From Agno"))
    ours = {name for row in rows for name in re.findall(r"`(\w+)=", row[1])}
    assert ours <= set(inspect.signature(Team).parameters)
    theirs = {name for row in rows for name in re.findall(r"`(\w+)", row[0])}
    assert {"respond_directly", "num_history_runs", "output_schema", "tool_call_limit", "knowledge"} <= theirs


def test_the_recipes_are_there_whole_and_nothing_of_them_twice(text: str) -> None:
    section = _section(text, "Recipes")
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [*NAMES, "mcp"]
    source = RECIPES.read_text()
    shown = "\n".join(_blocks(section)[:-1]) + "teams = [" + ", ".join(NAMES) + "]"
    written = ast.parse(source)
    del written.body[0]  # the docstring
    assert ast.dump(ast.parse(shown)) == ast.dump(written)


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_says_what_it_is_for_and_can_be_seen_at_once(name: str, text: str) -> None:
    recipe = _section(text, "Recipes").partition(f"### {name}\n")[2].partition("\n### ")[0]
    comment, _, code = recipe.strip().partition("\n\n")
    assert comment[0].isupper()
    assert comment.endswith(".")
    assert not comment.startswith("#")
    assert 10 <= len(_blocks(code)[0].splitlines()) <= 35


def test_the_mcp_snippet_makes_a_team(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    made: dict[str, Any] = {}
    exec(_blocks(_section(text, "Recipes"))[-1], made)  # noqa: S102 - it is of this project
    assert isinstance(made["clerk"], Team)
    assert isinstance(made["prices"], MCPToolset)
