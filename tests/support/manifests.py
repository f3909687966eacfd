"""What deploy/ is held to: schemas, settings, commands."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.support.workers import ROOT
from worker.cli import app
from worker.settings import Settings

DEPLOY = ROOT / "deploy"


def schema(name: str) -> Any:
    return json.loads(gzip.decompress((ROOT / "tests" / "data" / name).read_bytes()))


def interpolated(text: str, **given: str) -> str:
    """What Compose makes of ${NAME:-default}."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], text)


def settings_of(environment: Mapping[str, object], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a worker reads there; none of the variables is without effect."""
    texts = {name: interpolated(str(value)) for name, value in environment.items()}
    assert Settings.without_effect(texts) == []
    for name, value in texts.items():
        monkeypatch.setenv(name, value)
    return Settings.read()


def check_command(words: list[str]) -> None:
    """Raise if teamturn has no such command."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]


_KINDS = schema("kubernetes-1.37.json.gz")


def validate(document: Mapping[str, Any]) -> None:
    """Raise jsonschema's ValidationError if this is not what Kubernetes, KEDA or Prometheus's operator takes."""
    name = f"{document['apiVersion']} {document['kind']}"
    assert name in _KINDS["kinds"], name
    Draft202012Validator({**_KINDS["kinds"][name], "$defs": _KINDS["$defs"]}).validate(document)
