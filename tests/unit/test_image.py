"""The image: no engine builds it here, so what it is made of and what it starts are looked at one by one."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.probing import free_port
from tests.support.workers import ROOT, run_python
from worker.operations.probes import Answer, served

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\\]+)?)( \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)


class Instruction(NamedTuple):
    name: str
    words: str

    def exec_form(self) -> list[str]:
        """The words of what is started without a shell."""
        form = json.loads(self.words[self.words.index("[") :])
        assert isinstance(form, list)
        return form


def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [Instruction(*line.split(" ", 1)) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


def final_stage() -> list[Instruction]:
    all_of_them = instructions()
    last = max(number for number, one in enumerate(all_of_them) if one.name == "FROM")
    return all_of_them[last:]


def the_only(name: str) -> Instruction:
    (found,) = [one for one in final_stage() if one.name == name]
    return found


def copied_from_the_context() -> list[str]:
    return [
        source
        for one in instructions()
        if one.name == "COPY" and "--from" not in one.words
        for source in one.words.split()[:-1]
    ]


def pinned(name: str) -> dict[str, str]:
    """The versions in a requirements file, each with its hashes."""
    return {canonicalize_name(found[1]): found[2] for found in PINNED.finditer((DEPLOY / name).read_text())}


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_runs_as_a_numbered_user_who_is_not_root_and_starts_without_a_shell() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", the_only("USER").words)
    assert the_only("ENTRYPOINT").exec_form() == ["teamturn"]
    assert the_only("CMD").exec_form() == ["worker"]
    after = final_stage()[final_stage().index(the_only("USER")) :]
    assert not {"RUN", "COPY", "ADD"} & {one.name for one in after}


def test_all_that_is_copied_comes_through_the_ignore_file_and_nothing_else() -> None:
    ignored, *let_in = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert ignored == "*"
    assert sorted(line[1:] for line in let_in if line.startswith("!")) == sorted(set(copied_from_the_context()))
    assert [line for line in let_in if not line.startswith("!")] == ["**/__pycache__"]
    assert all((ROOT / source).exists() for source in copied_from_the_context())


def test_every_package_is_installed_by_its_hash_and_from_no_address() -> None:
    installs = [
        words for one in instructions() if one.name == "RUN" for words in one.words.split("&&") if "pip" in words
    ]
    files = [words.split("-r ")[1].strip() for words in installs if "--require-hashes" in words]
    assert files == ["deploy/requirements-build.txt", "deploy/requirements-worker.txt"]
    assert [words.split()[-1] for words in installs if "--require-hashes" not in words] == ["/wheels/*.whl"]
    assert any("PIP_NO_DEPS=1" in one.words for one in instructions() if one.name == "ENV")
    for file in files:
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith(("#", " "))]
        assert len(lines) == len(pinned(Path(file).name)) > 0
        assert "://" not in (ROOT / file).read_text()


@pytest.mark.parametrize("name", ["requirements-worker.txt", "requirements-build.txt"])
def test_its_versions_are_those_that_the_tests_run_with(name: str) -> None:
    tested = pinned("requirements-dev.txt")
    assert pinned(name).items() <= tested.items()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements-worker.txt", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]),
        ("requirements-build.txt", tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]),
    ],
)
def test_all_that_a_package_needs_is_pinned_with_it(name: str, wanted: list[str]) -> None:
    there = pinned(name)
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [Requirement(line) for line in wanted]
    while left:
        needed = left.pop()
        key = (canonicalize_name(needed.name), frozenset(needed.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in there, f"{needed} is not in {name}"
        extras = [*needed.extras, ""]
        further = [Requirement(line) for line in distribution(needed.name).requires or []]
        left += [one for one in further if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's wheel puts into its environment, made from what the image is given, by the same builder."""
    context, wheels, target = (tmp_path_factory.mktemp(name) for name in ("context", "wheels", "installed"))
    for source in copied_from_the_context():
        (context / source).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context / source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=context, check=True, capture_output=True, timeout=60)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def console_script(installed: Path) -> str:
    """The program that the image starts, as pip writes it."""
    scripts = ConfigParser()
    scripts.read(installed.glob("*.dist-info/entry_points.txt"))
    (program,) = the_only("ENTRYPOINT").exec_form()
    module, function = scripts["console_scripts"][program].split(":")
    return f"import sys; sys.argv[0] = {program!r}; from {module} import {function}; sys.exit({function}())"


async def started_as_the_image_does(installed: Path, *words: str, cwd: Path, **more: str) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEAMTURN_")}
    environment |= {"PYTHONPATH": str(installed), **more}
    return await run_python("-P", "-c", console_script(installed), *words, environment=environment, cwd=cwd, seconds=60)


async def test_what_it_starts_is_a_worker_that_finds_its_teams_in_the_working_directory(
    installed: Path, tmp_path: Path
) -> None:
    shutil.copy(DEPLOY / "examples" / "demo_teams.py", tmp_path)
    nobody = f"postgresql://teamturn@127.0.0.1:{free_port()}/teamturn"
    code, _, errors = await started_as_the_image_does(
        installed,
        *the_only("CMD").exec_form(),
        cwd=tmp_path,
        TEAMTURN_TEAMS="demo_teams:teams",
        TEAMTURN_POSTGRES_URL=nobody,
        TEAMTURN_HTTP_PORT=str(free_port()),
        DEMO_MODEL="test",
    )
    assert (code, errors.count("Postgres can't be reached")) == (2, 1), errors


async def test_without_teams_it_says_so(installed: Path, tmp_path: Path) -> None:
    code, _, errors = await started_as_the_image_does(installed, *the_only("CMD").exec_form(), cwd=tmp_path)
    assert code == 2
    assert errors.startswith("teamturn: TEAMTURN_TEAMS is not set")


def health_check(*, path: str | None = None) -> list[str]:
    """The words of the image's health check, for this machine."""
    python, *words = the_only("HEALTHCHECK").exec_form()
    assert python == "python"
    (copied,) = [one.words.split() for one in final_stage() if one.name == "COPY" and "healthcheck" in one.words]
    inside = copied[1] + Path(copied[0]).name
    assert fnmatch.filter(words, inside)
    here = [str(ROOT / copied[0]) if word == inside else word for word in words]
    return [*here, path] if path else here


async def checked(port: int | None, *, path: str | None = None, **more: str) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], **({} if port is None else {"TEAMTURN_HTTP_PORT": str(port)}), **more}
    code, out, errors = await run_python(*health_check(path=path), environment=environment, cwd=ROOT, seconds=20)
    assert out == ""
    return code, errors


PAGES = {
    "/healthz": lambda: Answer(200, b'{"alive":true}\n'),
    "/readyz": lambda: Answer(503, b'{"ready":false,"reason":"the worker is draining"}\n'),
}


async def test_a_worker_that_lives_is_healthy_whatever_proxy_there_is() -> None:
    async with served(PAGES, 0) as port:
        assert await checked(port, http_proxy="http://127.0.0.1:1") == (0, "")


async def test_a_worker_that_is_not_ready_is_told_so_with_its_reason() -> None:
    async with served(PAGES, 0) as port:
        code, errors = await checked(port, path="/readyz")
    assert code == 1
    assert "/readyz answers 503" in errors
    assert "the worker is draining" in errors


async def test_where_nobody_answers_the_worker_is_not_healthy() -> None:
    code, errors = await checked(port := free_port())
    assert code == 1
    assert errors.startswith(f"no answer at port {port}")


async def test_where_nobody_can_be_asked_the_process_that_lives_is_healthy() -> None:
    assert await checked(0) == (0, "")


def test_it_leaves_out_what_only_the_demo_and_the_tests_need() -> None:
    for name in ("testcontainers", "starlette", "agno", "pytest", "hatchling", "editables"):
        assert name not in pinned("requirements-worker.txt")
