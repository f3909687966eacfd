"""Text in rows of a terminal: as it comes, piece by piece, broken at spaces."""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len

_TAB: Final = "    "


class Rows:
    """Makes rows of text that comes in pieces, of so many columns at most; wide characters count as two."""

    def __init__(self, columns: int) -> None:
        self._columns = max(columns, 2)
        self.unfinished = ""
        """The last row, as far as it has come."""

    def add(self, text: str) -> list[str]:
        """Take a piece, and return the rows that are finished by it."""
        *lines, last = (self.unfinished + text.replace("\t", _TAB)).split("\n")
        rows = [row for line in lines for row in self._broken(line)]
        *full, self.unfinished = self._broken(last)
        return rows + full

    def end(self) -> list[str]:
        """Return the last row; none if nothing has come."""
        row, self.unfinished = self.unfinished, ""
        return [row.rstrip()] if row.strip() else []

    def _broken(self, line: str) -> list[str]:
        rows = []
        while cell_len(line) > self._columns:
            fitting = _fitting(line, self._columns)
            # A space behind the last column is as good as one before it.
            space = line.rfind(" ", 1, fitting + 1)
            if space > 0 and line[:space].strip():
                rows.append(line[:space].rstrip())
                line = line[space:].lstrip(" ")
            else:
                rows.append(line[:fitting])
                line = line[fitting:]
        return [*rows, line]


def wrapped(text: str, columns: int, *, first: str = "", others: str = "") -> list[str]:
    """Return text in rows, the first one behind `first` and the others behind `others`, which are equally wide."""
    rows = Rows(columns - cell_len(first))
    found = rows.add(text) + rows.end()
    return [(others if number else first) + row for number, row in enumerate(found or [""])]


def _fitting(line: str, columns: int) -> int:
    """Return how many characters fit into so many columns: one at least."""
    width = 0
    for number, character in enumerate(line):
        width += cell_len(character)
        if width > columns:
            return max(number, 1)
    return len(line)
