"""What a step changed in the session's state: found by looking before and after, kept with the step, made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, to_json

from worker.executors.json_values import as_json


class HasState(Protocol):
    """What holds the session's state."""

    state: dict[str, Any]


@dataclass(slots=True)
class StateChange:
    """Keys of the state that have other values now, and keys that are gone."""

    values: dict[str, JsonValue] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.values or self.removed)

    def add(self, later: StateChange) -> None:
        """Add what was changed after this."""
        for key in later.removed:
            self.values.pop(key, None)
        self.removed = [key for key in {*self.removed, *later.removed} if key not in later.values]
        self.values |= later.values

    def make(self, state: dict[str, Any]) -> None:
        """Make the change in a state."""
        state.update(self.values)
        for key in self.removed:
            state.pop(key, None)

    def as_json(self) -> dict[str, JsonValue]:
        """Return it as it is recorded."""
        return {"values": self.values, "removed": list[JsonValue](sorted(self.removed))}

    @classmethod
    def of(cls, recorded: Any) -> StateChange:  # noqa: ANN401 - what `as_json` returned
        """Return a change that was recorded."""
        return cls(dict(recorded["values"]), list(recorded["removed"]))


_change: ContextVar[StateChange | None] = ContextVar("change of the state by the step under way", default=None)


@contextmanager
def kept_change() -> Iterator[StateChange]:
    """Gather what is watched within the block, in tasks made there too."""
    change = StateChange()
    token = _change.set(change)
    try:
        yield change
    finally:
        _change.reset(token)


@contextmanager
def watched(session: HasState) -> Iterator[None]:
    """Add what the block changes in the session's state to what is gathered, if anything is.

    What others change meanwhile is taken for the block's: whoever is recorded first has it. Raises InvalidResult for a
    value that JSON can't hold.
    """
    change = _change.get()
    if change is None:
        yield
        return
    before = _texts(session.state)
    yield
    after = _texts(session.state)
    changed = {key: session.state[key] for key, text in after.items() if before.get(key) != text}
    values = as_json(changed, what="the session state") if changed else {}
    assert isinstance(values, dict)  # noqa: S101 - for the type checker: an object stays one
    change.add(StateChange(values, [str(key) for key in before if key not in after]))


def _texts(state: dict[str, Any]) -> dict[str, bytes]:
    return {key: _text(value) for key, value in list(state.items())}


def _text(value: Any) -> bytes:  # noqa: ANN401 - any value
    try:
        return to_json(value)
    except (PydanticSerializationError, ValueError, RecursionError):
        return b""  # said where it is recorded, or at the turn's end
