"""Slots: the fixed share of the session ids that each partition serves."""

from __future__ import annotations

import hashlib
from typing import Final

SLOTS: Final = tuple(f"{number:02x}" for number in range(256))


def slot_of(session_id: str) -> str:
    """Return the routing key of a session: the first two hex digits of the md5 of its id in UTF-8."""
    return hashlib.md5(session_id.encode(), usedforsecurity=False).hexdigest()[:2]


def partition_of(slot: str, partitions: int) -> int:
    """Return the number of the request queue that the slot is bound to."""
    return int(slot, 16) % partitions
