"""Commands, as people type them in a terminal of 80 columns."""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len

from tests.support.workers import environment_of, run_command
from worker.settings import Settings

COMPLETED, FAILED, MISTAKE = 0, 1, 2
WIDTH: Final = 80

ODD: Final = "[bold]séance[/bold] [/] 会議 ✓ [red"
"""An id of markup, and of characters that are two columns wide or none of ASCII."""

Ended = tuple[int, str, str]
"""The exit code, and what was printed: standard output and standard error."""


async def teamturn(settings: Settings, *command: str, **environment: str) -> Ended:
    """Run a command; whatever comes of it, nobody is shown a traceback."""
    surroundings = environment_of(settings, COLUMNS=str(WIDTH), NO_COLOR="1", **environment)
    ended = await run_command(*command, environment=surroundings)
    assert "Traceback" not in ended[2], ended[2]
    return ended


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if cell_len(line.rstrip()) > WIDTH]
