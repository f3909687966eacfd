"""Where a conversation is shown. Here: plainly, for pipes, files and terminals that can't do more; else see `prompt`.

What others wrote gets through a screen by `printable` only: the control sequences that it writes are its own.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Final, Protocol

from typing_extensions import override

from worker.cli.terminal import printable

COLUMNS: Final = 80
"""Where nobody says how many there are."""


class Style(Enum):
    """How a row looks, where the terminal has more than one look."""

    PLAIN = ""
    DIM = "\x1b[2m"
    BOLD = "\x1b[1m"
    ALARMED = "\x1b[31m"


class Screen(Protocol):
    """What a conversation writes on."""

    def write(self, piece: str) -> None:
        """Show a piece of the answer, as it comes."""

    def end(self) -> None:
        """End the answer's last row, if it has begun."""

    def aside(self, text: str, *, depth: int = 0, style: Style = Style.DIM) -> None:
        """Show what happens beside the answer, or what there is to say of it: in rows of its own, indented."""

    def page(self, text: str) -> None:
        """Show text that was asked for, as it is laid out."""

    def echo(self, text: str) -> None:
        """Show what was said, where it was typed away from its place."""

    def go_on(self, status: str) -> None:
        """Say in a word what goes on, for whoever has a prompt to show it at; nothing if nobody waits for anything."""

    @property
    def columns(self) -> int:
        """How wide it is."""


class PlainScreen(Screen):
    """The answers alone on standard output, all else on standard error, and nothing wrapped."""

    def __init__(self) -> None:
        self._within = False

    @property
    @override
    def columns(self) -> int:
        return COLUMNS

    @override
    def write(self, piece: str) -> None:
        print(printable(piece), end="", flush=True)
        self._within = not piece.endswith("\n") if piece else self._within

    @override
    def echo(self, text: str) -> None:
        pass

    @override
    def go_on(self, status: str) -> None:
        pass

    @override
    def end(self) -> None:
        if self._within:
            print(flush=True)
        self._within = False

    @override
    def aside(self, text: str, *, depth: int = 0, style: Style = Style.DIM) -> None:
        self.end()
        for line in printable(text).split("\n"):
            print("  " * depth + line, file=sys.stderr, flush=True)

    @override
    def page(self, text: str) -> None:
        self.end()
        print(printable(text), flush=True)
