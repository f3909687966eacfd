"""Reading what a record holds: jsonb that other programs may have written, too."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from worker.executors.turn import PastRun
from worker.sessions.stored_runs import past_run

JsonObject = dict[str, Any]


def parsed(text: str | None, kind: type[Any]) -> Any:  # noqa: ANN401 - an instance of kind
    """Parse a jsonb value that should be an object or array; what another program left there instead is empty."""
    value = None if text is None else from_json(text)
    return value if isinstance(value, kind) else kind()


def runs_of(text: str | None) -> tuple[PastRun, ...]:
    """Return the runs of a history as a turn is shown them; null is none."""
    return tuple(past_run(run) for run in parsed(text, list))
