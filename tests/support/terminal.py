"""A terminal of 80 columns with a command in it: what is on its screen is what a person would see."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

import pyte
from typing_extensions import override

from tests.support.waiting import eventually
from tests.support.workers import ROOT

COLUMNS: Final = 80
ROWS: Final = 40
CTRL_C, CTRL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"


class _Screen(pyte.HistoryScreen):
    """Answers as terminals do, when it is asked where its cursor is."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(COLUMNS, ROWS, history=1000, ratio=1)
        self._terminal = terminal
        self.title_set = False

    @override
    def write_process_input(self, data: str) -> None:
        self._terminal.type(data)

    @override
    def set_title(self, param: str) -> None:
        self.title_set = True


class Terminal:
    """Runs `teamturn …` until the end of the block."""

    def __init__(self, *words: str, environment: Mapping[str, str], term: str = "xterm-256color") -> None:
        self._words = words
        self._environment = {**environment, "TERM": term}
        self._environment.pop("COLUMNS", None)
        self.screen = _Screen(self)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        """All that the command has written."""

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", *self._words),
            env=self._environment,
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        if kind is not None:
            print("\n".join(self.rows))

    @property
    def rows(self) -> list[str]:
        """All rows down to the cursor's, those that have scrolled off the top included."""
        above = ["".join(row[column].data for column in range(COLUMNS)).rstrip() for row in self.screen.history.top]
        return (above + [row.rstrip() for row in self.screen.display])[: len(above) + self.screen.cursor.y + 1]

    def type(self, keys: str | bytes) -> None:
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    async def say(self, text: str) -> None:
        """Type text at the prompt, and send it."""
        await self.prompted()
        self.type(text + ENTER)

    async def answer_to(self, text: str) -> list[str]:
        """Say something, and return the rows between that and the next prompt."""
        asked = f"> {text}"
        times = self.rows.count(asked)
        await self.say(text)
        await self.shows(lambda rows: rows.count(asked) > times and rows[-1] == ">" and len(_behind(rows, asked)) > 1)
        return _behind(self.rows, f"> {text}")[:-1]

    async def prompted(self, status: str = "") -> None:
        """Wait until there is an empty prompt, with this status before it."""
        await self.shows(lambda rows: rows[-1] == f"{status}>")

    async def has_row(self, row: str) -> None:
        """Wait until there is such a row."""
        await self.shows(lambda rows: row in rows)

    async def has(self, text: str) -> None:
        """Wait until some row has this text in it."""
        await self.shows(lambda rows: any(text in row for row in rows))

    async def shows(self, condition: Callable[[list[str]], bool]) -> None:
        """Wait until the rows are as is wanted."""
        try:
            await eventually(lambda: condition(self.rows), seconds=30)
        except AssertionError:
            raise AssertionError("the screen shows:\n" + "\n".join(self.rows)) from None

    async def exited(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # nobody has the other side any more
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self.written += data
        self._stream.feed(data)


def _behind(rows: list[str], row: str) -> list[str]:
    """The rows behind the last one that is so; none if none is."""
    return rows[len(rows) - rows[::-1].index(row) :] if row in rows else []
