"""Print, as JSON, what of the teamturn that is found first a user's code, commands and settings can name.

Run in a process with that version first on its path: two versions can't be imported side by side.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import typer.main

import teamturn
from worker.cli import app
from worker.settings import Settings


def parameters(thing: Any) -> dict[str, Any]:
    """Of a callable: its parameters, in order where they may be positional, and which of them must be given."""
    found = [one for one in inspect.signature(thing).parameters.values() if one.name != "self"]
    return {
        "parameters": sorted(one.name for one in found),
        "positional": [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)],
        "required": sorted(one.name for one in found if one.default is one.empty and one.kind < one.VAR_KEYWORD),
    }


def members_of(thing: type) -> dict[str, Any]:
    """Of a class: what itself and our classes below it have, methods with their parameters."""
    ours = [one for one in thing.__mro__ if one.__module__.startswith(("worker.", "schemas."))]
    names = {name for one in ours for name in (*vars(one), *getattr(one, "model_fields", ())) if name[0] != "_"}
    found = {name: getattr(thing, name, None) for name in sorted(names)}
    return {name: parameters(value) if inspect.isfunction(value) else {} for name, value in found.items()}


def of_python() -> dict[str, Any]:
    surface: dict[str, Any] = {}
    for name in teamturn.__all__:
        thing = getattr(teamturn, name)
        is_error = inspect.isclass(thing) and issubclass(thing, Exception)
        surface[name] = {} if is_error else parameters(thing)
        if inspect.isclass(thing):
            surface |= {f"{name}.{member}": found for member, found in members_of(thing).items()}
    return surface


def of_commands(command: Any, path: str = "teamturn") -> dict[str, Any]:
    surface: dict[str, Any] = {
        path: {
            "parameters": sorted(name for one in command.params for name in one.opts),
            "positional": [one.name for one in command.params if one.param_type_name == "argument"],
            "required": sorted(one.opts[0] for one in command.params if one.required),
        }
    }
    for name, inner in getattr(command, "commands", {}).items():
        surface |= of_commands(inner, f"{path} {name}")
    return surface


if __name__ == "__main__":
    settings: dict[str, Any] = {f"TEAMTURN_{name.upper()}": {} for name in Settings.model_fields}
    print(json.dumps(of_python() | of_commands(typer.main.get_command(app)) | settings))
