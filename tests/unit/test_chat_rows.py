"""Rows of text that comes in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from worker.cli.chat.rows import Rows, wrapped

pieces = st.lists(st.text(alphabet="ab \n\t会é"), max_size=20)


def rows_of(columns: int, pieces: list[str]) -> list[str]:
    rows = Rows(columns)
    return [row for piece in pieces for row in rows.add(piece)] + rows.end()


@given(pieces, st.integers(2, 20))
def test_no_row_is_wider_than_the_terminal(pieces: list[str], columns: int) -> None:
    assert all(cell_len(row) <= columns for row in rows_of(columns, pieces))


@given(pieces, st.integers(2, 20))
def test_no_character_but_white_space_is_lost(pieces: list[str], columns: int) -> None:
    assert "".join("".join(rows_of(columns, pieces)).split()) == "".join("".join(pieces).split())


@given(pieces)
def test_lines_that_fit_are_left_as_they_are(pieces: list[str]) -> None:
    text = "".join(pieces).replace("\t", "    ")
    expected = [line.rstrip() for line in text.split("\n")]
    assert [row.rstrip() for row in rows_of(1000, pieces)] == (expected if expected[-1] else expected[:-1])


def test_a_row_is_broken_at_the_last_space_that_fits() -> None:
    assert rows_of(10, ["one two", " three four"]) == ["one two", "three four"]


def test_a_word_that_is_too_long_is_cut() -> None:
    assert rows_of(4, ["abcdefghij"]) == ["abcd", "efgh", "ij"]


def test_rows_behind_the_first_hang() -> None:
    assert wrapped("one two three", 9, first="> ", others="  ") == ["> one two", "  three"]
