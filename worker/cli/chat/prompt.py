"""A terminal: a prompt at which one can type at any time, and above it what is shown.

prompt_toolkit reads the keys and keeps the prompt below all else, also while an answer is written; the rows are ours.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_or_none, in_terminal
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from typing_extensions import override

from worker.cli.chat.rows import Rows, wrapped
from worker.cli.chat.screens import COLUMNS, Screen, Style
from worker.cli.terminal import printable

_REPAINT_SECONDS: Final = 0.03
"""Between two repaints: a model writes faster than anybody reads."""
_HANGING: Final = "  "


class TerminalScreen(Screen):
    """Rows above a prompt. What is unfinished of the answer is a part of the prompt, until it is a row.

    An async context manager: within it rows are painted as they come, at its end all of them are.
    """

    def __init__(self) -> None:
        self._styled = not os.environ.get("NO_COLOR")
        self._answer = Rows(self.columns)
        self._waiting: list[str] = []
        self._unfinished = ""
        self._status = ""
        self._changed = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        """Begin to paint."""
        self._painting = asyncio.create_task(self._paint())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Paint what is left."""
        self.end()
        self._closing = True
        self._changed.set()
        await self._painting

    @property
    @override
    def columns(self) -> int:
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns or COLUMNS
        except OSError:
            return COLUMNS

    @override
    def go_on(self, status: str) -> None:
        self._status = status
        self._changed.set()

    def prompt(self) -> str:
        """Return what stands before what is typed: the unfinished row of the answer above it."""
        above = f"{self._unfinished}\n" if self._unfinished else ""
        return f"{above}{self._status}> "

    @override
    def write(self, piece: str) -> None:
        self._show(self._answer.add(printable(piece)))

    @override
    def end(self) -> None:
        self._show(self._answer.end())
        self._answer = Rows(self.columns)

    @override
    def aside(self, text: str, *, depth: int = 0, style: Style = Style.DIM) -> None:
        self.end()
        indent = "  " * depth
        rows = wrapped(printable(text), self.columns, first=indent, others=indent)
        self._show([self._in(style, row) for row in rows])

    @override
    def echo(self, text: str) -> None:
        self.end()
        rows = wrapped(printable(text), self.columns, first="> ", others=_HANGING)
        self._show([self._in(Style.BOLD, row) for row in rows])

    @override
    def page(self, text: str) -> None:
        self.end()
        self._show([row for line in printable(text).split("\n") for row in wrapped(line, self.columns)])

    def _in(self, style: Style, row: str) -> str:
        return f"{style.value}{row}\x1b[0m" if self._styled and style is not Style.PLAIN else row

    def _show(self, rows: list[str]) -> None:
        self._waiting += rows
        self._changed.set()

    async def _paint(self) -> None:
        while not self._closing or self._waiting:
            await self._changed.wait()
            self._changed.clear()
            if self._waiting:
                async with in_terminal():
                    rows, self._waiting = self._waiting, []
                    # With the rows, at once: what was unfinished is among them.
                    self._unfinished = self._answer.unfinished
                    print("\n".join(rows), flush=True)
            self._unfinished = self._answer.unfinished
            if (app := get_app_or_none()) is not None:
                app.invalidate()
            await asyncio.sleep(_REPAINT_SECONDS)


async def typed(screen: TerminalScreen, *, interrupted: Callable[[], None]) -> AsyncIterator[str]:
    """Yield what is typed at the prompt, until Ctrl-D: Enter sends, Alt-Enter begins a new line, Ctrl-C interrupts.

    It is gone from the prompt then: who takes it shows it, where it belongs.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(_: KeyPressEvent) -> None:
        interrupted()

    session: PromptSession[str] = PromptSession(
        screen.prompt,
        multiline=True,
        key_bindings=keys,
        erase_when_done=True,
        reserve_space_for_menu=0,
    )
    while True:
        try:
            text = await session.prompt_async(handle_sigint=False)
        except EOFError:
            return
        # Bytes that are not UTF-8, of a terminal that is set to something else, come as lone surrogates.
        text = text.encode(errors="replace").decode()
        if text.strip():
            yield text
