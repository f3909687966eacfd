"""TEAMTURN_TEAMS: which teams, agents and workflows a worker can run."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas.ids import Target
from worker.errors import StartupError
from worker.executors.turn import Executor

Executors = Mapping[Target, Executor]

_EXAMPLE = "set it to module:attribute, for example TEAMTURN_TEAMS=my_teams:teams"


def load_executors(teams: str) -> Executors:
    """Import what TEAMTURN_TEAMS names, the working directory searched after the installed packages.

    Each `module:attribute` is a team, agent or executor, or an iterable of them. Raises StartupError, naming the entry
    and what is wrong with it.
    """
    entries = [entry.strip() for entry in teams.split(",") if entry.strip()]
    if not entries:
        raise StartupError(f"TEAMTURN_TEAMS is not set, so there is nothing to run: {_EXAMPLE}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    found: dict[Target, Executor] = {}
    agents: dict[int, Executor] = {}
    for entry in entries:
        for executor in _executors_in(entry, agents):
            if executor.target in found and found[executor.target] is not executor:
                raise StartupError(f"TEAMTURN_TEAMS names {executor.target} twice; each id is for one")
            found[executor.target] = executor
    return found


def _executors_in(entry: str, agents: dict[int, Executor]) -> Iterable[Executor]:
    module_name, colon, attribute = entry.partition(":")
    if not (module_name and colon and attribute):
        raise StartupError(f"TEAMTURN_TEAMS has {entry!r}, which is no module:attribute: {_EXAMPLE}")
    found: Any = _imported(entry, module_name)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise StartupError(f"TEAMTURN_TEAMS: the module {module_name} has no {attribute!r}") from None
    if (single := _as_executor(found, entry, agents)) is not None:
        return [single]
    if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping):
        try:
            several = list(found)
        except Exception as error:
            raise StartupError(_failure(entry, error)) from error
        executors = [executor for one in several if (executor := _as_executor(one, entry, agents)) is not None]
        if executors and len(executors) == len(several):
            return executors
    raise StartupError(
        f"TEAMTURN_TEAMS: {entry} is {type(found).__name__}, not a Team, an Agent, a Workflow or an @executor "
        "function, or a list of them"
    )


def _imported(entry: str, module_name: str) -> Any:  # noqa: ANN401 - a module, of any kind
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise StartupError(
                f"TEAMTURN_TEAMS: there is no module {module_name}, neither installed nor in {Path.cwd()}"
            ) from None
        raise StartupError(_failure(entry, error)) from error
    # A user's module may raise anything while it is imported: a missing key, an unknown model, a typing mistake.
    except (Exception, SystemExit) as error:
        raise StartupError(_failure(entry, error)) from error


def _failure(entry: str, error: BaseException) -> str:
    reason = str(error).strip().splitlines() or [""]
    return f"TEAMTURN_TEAMS: importing {entry} failed{_place(error)}: {type(error).__name__}: {reason[0]}"


def _place(error: BaseException) -> str:
    """Return the last line of the user's own files: it says more than the library's that raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not _is_library(frame.filename)]
    return f" ({Path(users[-1].filename).name}:{users[-1].lineno})" if users else ""


def _is_library(filename: str) -> bool:
    homes = (Path(__file__).parent.parent, Path(sysconfig.get_path("stdlib")))
    inside = any(home in Path(filename).parents for home in homes)
    return inside or "site-packages" in filename or filename.startswith("<frozen")


def _as_executor(found: Any, entry: str, agents: dict[int, Executor]) -> Executor | None:  # noqa: ANN401 - whatever the module holds
    """Return what can take a turn. None if it is nothing that can.

    A pydantic-ai Agent is made a SingleAgent, an Agno Team, Agent or Workflow an AgnoExecutor: once.
    """
    if isinstance(getattr(found, "target", None), Target) and callable(getattr(found, "run", None)):
        executor: Executor = found
        return executor
    make = _maker_for(found)
    if make is None:
        return None
    try:
        return agents.setdefault(id(found), agents.get(id(found)) or make(found))
    except Exception as error:
        raise StartupError(_failure(entry, error)) from error


def _maker_for(found: Any) -> Callable[[Any], Executor] | None:  # noqa: ANN401 - whatever the module holds
    # Who has no such agents need not load their libraries; what is one, has loaded its own.
    if _is_of(found, "pydantic_ai", "Agent"):
        from worker.team.single_agent import SingleAgent  # noqa: PLC0415 - as said

        return SingleAgent
    if any(_is_of(found, f"agno.{name.lower()}", name) for name in ("Agent", "Team", "Workflow")):
        from worker.agno.executor import AgnoExecutor  # noqa: PLC0415 - as said

        return AgnoExecutor
    return None


def _is_of(found: Any, module: str, name: str) -> bool:  # noqa: ANN401 - whatever the module holds
    """Whether it is an instance of a class of a module, which is not imported for the answer."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(found, kind)
