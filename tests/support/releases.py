"""The last release, as its users have it: its code beside this version's, in processes of its own."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.workers import ROOT

LAST = ROOT / "tests" / "data" / "releases" / "teamturn-0.1.0-py3-none-any.whl"


@dataclass(frozen=True)
class Release:
    """A released version, unpacked."""

    folder: Path

    @property
    def path(self) -> str:
        """The PYTHONPATH that makes a command that release's, outside of ROOT: the tests' teams are found after it."""
        return f"{self.folder}:{ROOT}"

    def migrations(self) -> dict[str, str]:
        """The text of its migrations, by their file's name."""
        return {file.name: file.read_text() for file in sorted(self.folder.glob("sql/migrations/*.sql"))}

    def json_schema(self, name: str) -> dict[str, Any]:
        """The JSON Schema of a message, as the release has it."""
        found: dict[str, Any] = json.loads((self.folder / "schemas" / "json" / f"{name}.json").read_text())
        return found


def unpacked(folder: Path) -> Release:
    """Unpack the last release."""
    with zipfile.ZipFile(LAST) as wheel:
        wheel.extractall(folder)
    return Release(folder)
