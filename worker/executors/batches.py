"""How much of a conversation is summed up at once, whoever writes the summary."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

LONGEST_SUMMARY_CHARACTERS: Final = 8_000
LONGEST_SIDE_CHARACTERS: Final = 8_000
"""Of what one side said in a run: a summary needs no file that was pasted into the conversation."""
SHORT_SIDE_CHARACTERS: Final = 2_000
"""Likewise, in a run that the provider did not take at that length."""
_LONGEST_BATCH_CHARACTERS: Final = 48_000
"""Of the runs that are summed up at once: some 12,000 tokens, which models of today take."""


def number_in_batch(characters: Iterable[int]) -> int:
    """Return how many of some runs, of so many characters each, are summed up at once: whole ones, at least one."""
    return max(1, bisect_right(list(accumulate(characters)), _LONGEST_BATCH_CHARACTERS))


def cut(text: str, longest: int) -> str:
    """Return a text, or its beginning where it is longer."""
    return text if len(text) <= longest else f"{text[:longest]} …"
