"""What has happened so far, counted and written down."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path


class Tally:
    """Counts what happens, by its name, and writes a line of it to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", buffering=1)
        self.counts: Counter[str] = Counter()

    def __getitem__(self, name: str) -> int:
        return self.counts[name]

    def count(self, name: str, what: object = "") -> None:
        """Count it once, and write down of what."""
        self.counts[name] += 1
        self.note(f"{name} {what}")

    def note(self, text: str) -> None:
        """Only write it down."""
        # As in the workers' logs.
        self._file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {text.rstrip()}\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
