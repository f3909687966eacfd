"""TEAMTURN_TEAMS: what it names is imported, or the start ends with a line that says what is wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.examples import agent, team
from worker.errors import StartupError
from worker.executors.registry import load_executors

_GOOD = """
from pydantic_ai.models.test import TestModel
from teamturn import Team, executor

@executor("echo")
async def echo(turn):
    return turn.input

@executor("echo", kind="agent")
async def agent_echo(turn):
    return turn.input

capital = Team("capital", TestModel())
"""

Module = Callable[[str], str]
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Write a module into the working directory and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(text: str) -> str:
        name = f"users_teams_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


def _refused(teams: str) -> str:
    with pytest.raises(StartupError) as refused:
        load_executors(teams)
    message = str(refused.value)
    assert "TEAMTURN_TEAMS" in message
    assert "\n" not in message
    return message


def test_one_team_one_executor_or_both_are_found_by_their_targets(module: Module) -> None:
    name = module(_GOOD)
    assert load_executors(f"{name}:capital").keys() == {team("capital")}
    both = load_executors(f" {name}:capital , {name}:agent_echo,")
    assert both.keys() == {team("capital"), agent("echo")}
    assert both[team("capital")].name == "capital"


@pytest.mark.parametrize(
    "line",
    [
        "teams = [echo, capital]",
        "teams = (echo, capital)",
        "teams = {'a': echo, 'b': capital}.values()",
        "teams = (one for one in [echo, capital])",
        "class teams_of:\n    teams = [echo, capital]\nteams = teams_of.teams",
    ],
    ids=["list", "tuple", "view", "generator", "attribute of a class"],
)
def test_an_iterable_of_them_is_all_of_them(module: Module, line: str) -> None:
    name = module(f"{_GOOD}\n{line}\n")
    assert load_executors(f"{name}:teams").keys() == {team("echo"), team("capital")}


def test_an_attribute_of_an_attribute_can_be_named(module: Module) -> None:
    name = module(f"{_GOOD}\nclass Ours:\n    best = capital\n")
    assert load_executors(f"{name}:Ours.best").keys() == {team("capital")}


@pytest.mark.usefixtures("module")
def test_a_package_s_module_can_be_named(tmp_path: Path) -> None:
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(_GOOD)
    assert load_executors("users_package.inner:echo").keys() == {team("echo")}


def test_the_same_object_named_twice_is_one(module: Module) -> None:
    name = module(f"{_GOOD}\nteams = [echo, capital, echo]\n")
    assert len(load_executors(f"{name}:teams,{name}:echo,{name}:capital")) == 2


def test_the_same_id_of_another_kind_is_another_target(module: Module) -> None:
    name = module(f"{_GOOD}\nteams = [echo, agent_echo]\n")
    assert load_executors(f"{name}:teams").keys() == {team("echo"), agent("echo")}


def test_two_objects_of_one_target_are_refused(module: Module) -> None:
    name = module(f"{_GOOD}\nother = Team('echo', TestModel())\n")
    assert "team.echo twice" in _refused(f"{name}:echo,{name}:other")


@pytest.mark.parametrize("teams", ["", "  ", ",", " , ,"])
def test_nothing_to_run_is_refused_with_an_example(teams: str) -> None:
    assert "TEAMTURN_TEAMS=my_teams:teams" in _refused(teams)


@pytest.mark.parametrize("entry", ["my_teams", "my_teams:", ":teams", ":", "my_teams.teams"])
def test_what_is_no_module_and_attribute_is_refused_with_an_example(entry: str) -> None:
    message = _refused(entry)
    assert repr(entry) in message
    assert "module:attribute" in message


@pytest.mark.parametrize("missing", ["users_nowhere", "users_nowhere.inner", "json.nowhere", "sys.nowhere"])
@pytest.mark.usefixtures("module")
def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(missing: str, tmp_path: Path) -> None:
    message = _refused(f"{missing}:teams")
    assert missing in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("attribute", ["nope", "capital.nope", "nope.capital"])
def test_an_attribute_that_is_not_there_is_named(module: Module, attribute: str) -> None:
    name = module(_GOOD)
    message = _refused(f"{name}:{attribute}")
    assert name in message
    assert attribute in message


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("it = 5", "int"),
        ("it = 'text'", "str"),
        ("it = None", "NoneType"),
        ("it = []", "list"),
        ("it = [echo, 5]", "list"),
        ("it = [[echo]]", "list"),
        ("it = {'echo': echo}", "dict"),
        ("async def it(turn): return 1", "function"),
        ("it = Team", "type"),
    ],
)
def test_what_is_no_team_nor_a_list_of_them_is_refused_with_what_it_is(module: Module, line: str, kind: str) -> None:
    name = module(f"{_GOOD}\n{line}\n")
    message = _refused(f"{name}:it")
    assert f"{name}:it" in message
    assert kind in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise LookupError('no key')", "LookupError: no key"),
        ("import users_not_installed", "No module named 'users_not_installed'"),
        ("from json import nope", "cannot import name 'nope'"),
        ("x = (", "SyntaxError"),
        ("raise ValueError('first line\\nsecond line')", "ValueError: first line"),
        ("raise RuntimeError", "RuntimeError"),
        ("from teamturn import Team\nTeam('t', 'no-such-model')", "no-such-model"),
        ("from teamturn import Team\nfrom pydantic_ai.models.test import TestModel\nTeam('', TestModel())", "team id"),
    ],
)
def test_a_module_that_fails_to_import_is_named_with_its_reason(module: Module, text: str, reason: str) -> None:
    name = module(text)
    message = _refused(f"{name}:teams")
    assert name in message
    assert reason in message


@pytest.mark.parametrize(
    "text",
    [
        "\nraise LookupError('no key')",
        "\nimport json; json.loads('{')",
        "from teamturn import Team\nTeam('', 'test')",
        "\nx = (",
    ],
    ids=["its own", "a library's", "teamturn's", "its syntax"],
)
def test_a_failure_is_shown_at_the_line_of_the_user_s_own_file(module: Module, text: str) -> None:
    name = module(text)
    assert f"({name}.py:2)" in _refused(f"{name}:teams")


def test_an_iterable_that_fails_on_the_way_is_refused_like_any_other_mistake(module: Module) -> None:
    name = module(f"{_GOOD}\ndef made():\n    yield echo\n    raise ValueError('no key')\nteams = made()\n")
    assert "no key" in _refused(f"{name}:teams")


@pytest.mark.usefixtures("module")
def test_the_working_directory_is_searched_after_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text(_GOOD)
    sys.modules.pop("colorsys", None)
    assert "has no 'echo'" in _refused("colorsys:echo")
    assert sys.path[-1] == str(tmp_path)


_AGNO = """
from agno.agent import Agent
from agno.team import Team
from agno.workflow import Workflow
from tests.unit.agno_objects import Scripted

agent = Agent(id="a", model=Scripted())
team = Team(id="t", model=Scripted(), members=[agent])
everything = [team, agent, Workflow(id="w", steps=[agent])]
nameless = Team(model=Scripted(), members=[])
"""


def test_agno_s_teams_agents_and_workflows_can_be_named(module: Module) -> None:
    name = module(_AGNO)
    found = load_executors(f"{name}:everything,{name}:team")
    assert [str(target) for target in found] == ["team.t", "agent.a", "workflow.w"]
    assert {type(executor).__name__ for executor in found.values()} == {"AgnoExecutor"}


def test_an_agno_team_without_id_and_name_is_refused(module: Module) -> None:
    assert "needs an id or a name" in _refused(f"{module(_AGNO)}:nameless")


_WITHOUT_AGNO = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "agno":
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Refusing())
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
import teamturn
from worker.executors.registry import load_executors

for name in teamturn.__all__:
    if name != "AgnoExecutor":
        getattr(teamturn, name)
this = sys.modules["users"] = type(sys)("users")
this.everything = [teamturn.Team("t", TestModel()), Agent(TestModel(), name="a")]
this.odd = object()
assert len(load_executors("users:everything")) == 2
try:
    load_executors("users:odd")
except Exception as error:
    print(error)
import worker.wiring, worker.cli
print([name for name in sys.modules if name.partition(".")[0] == "agno" or name.startswith("worker.agno")])
"""


def test_nothing_of_agno_is_imported_by_who_does_not_use_it() -> None:
    ran = subprocess.run([sys.executable, "-c", _WITHOUT_AGNO], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    refused, imported = ran.stdout.splitlines()
    assert "is object, not a Team" in refused
    assert imported == "[]"
