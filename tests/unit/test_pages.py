"""The project's pages: what they name is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from tests.support.workers import ROOT
from worker.cli import app
from worker.settings import SUPERVISORS_OWN, Settings

NAMES: Final = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True, timeout=20).split()
PAGES: Final = [ROOT / name for name in NAMES if name != "CHANGELOG.md"]
TESTS: Final = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
VARIABLES: Final = {
    *(f"TEAMTURN_{name.upper()}" for name in Settings.model_fields),
    *SUPERVISORS_OWN,
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@every_page
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in TESTS, name
    for name in re.findall(r"`(test_\w+\.py)`", page.read_text(encoding="utf-8")):
        assert list((ROOT / "tests").rglob(name)), name


@every_page
def test_the_settings_that_a_page_names_are_settings(page: Path) -> None:
    named = set(re.findall(r"\bTEAMTURN_[A-Z_]+\b", page.read_text(encoding="utf-8")))
    assert named <= VARIABLES


@every_page
def test_the_commands_that_a_page_shows_are_commands(page: Path) -> None:
    """With the options that they are shown with."""
    for line in shown_commands(page.read_text(encoding="utf-8")):
        command: Any = typer.main.get_command(app)
        words = line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands") or not words or words[0].startswith("-"), f"teamturn {line}"
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= {*known, "--help"}, f"teamturn {line}"


def shown_commands(page: str) -> list[str]:
    """What follows the word teamturn in code that is one of its commands, to the end of that command."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page)
    found = [re.search(r"(?:^|[;|&$] |\w=\S+ |worker |-- )teamturn ([a-z][^|;&#>']*)", line) for line in lines]
    return [match[1].strip() for match in found if match]


def test_the_commands_of_the_readme_are_found() -> None:
    found = shown_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"worker --migrate", "doctor", "fleet", "sessions who"} <= set(found)


def test_the_panels_that_the_readme_sends_to_are_on_the_dashboard() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| .+\? \| .* \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {panel for row in rows for panel in re.findall(r"\*([A-Z][^*]+)\*", row)}
    assert named
    assert named <= {panel["title"] for panel in dashboard["panels"]}
