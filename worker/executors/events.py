"""What is told of an attempt while it goes on, to those who watch the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Publish = Callable[[dict[str, Any]], None]
"""Publish an event's fields. It doesn't wait, and never fails."""


class Events:
    """The events of one attempt, numbered as they happen. Without `publish` nobody watches, and nothing is told."""

    def __init__(self, publish: Publish | None = None, *, run_id: str = "", attempt: int = 1) -> None:
        """`run_id` is the request's."""
        self.run_id = run_id
        self._publish = publish
        self._attempt = attempt
        self._number = 0

    @property
    def watched(self) -> bool:
        """Whether anybody is told."""
        return self._publish is not None

    def tell(self, type_: str, **fields: Any) -> None:  # noqa: ANN401 - the event's own fields
        """Tell an event."""
        if self._publish is None:
            return
        self._number += 1
        self._publish({"type": type_, "attempt": self._attempt, "number": self._number, "time": time.time(), **fields})
