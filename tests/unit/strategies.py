"""What hypothesis makes for the unit tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from pydantic import JsonValue

any_text = st.text(alphabet=st.characters(exclude_categories=()))
"""Text with everything a Python str can hold: NUL and lone surrogates too."""

ids = st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=60)
"""Ids that the contract allows: at most 60 characters of 4 bytes."""


def json_values(text: st.SearchStrategy[str] = st.text()) -> st.SearchStrategy[JsonValue]:  # noqa: B008 - immutable
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )


def json_objects(text: st.SearchStrategy[str] = st.text()) -> st.SearchStrategy[dict[str, Any]]:  # noqa: B008
    return st.dictionaries(text, json_values(text), max_size=5)


_objects = json_objects()
_text_parts = st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})
_inputs = st.text() | st.lists(_text_parts, min_size=1, max_size=3)
_optional = {
    "session_id": ids,
    "user_id": ids,
    "session_state": _objects,
    "metadata": _objects,
    "stream": st.booleans(),
    "deadline": st.sampled_from(["2030-01-31T12:00:00Z", "2031-06-01T00:00:00+02:00"]),
    "on_busy": st.sampled_from(["enqueue", "reject", "interrupt", "coalesce"]),
}

request_bodies: st.SearchStrategy[dict[str, Any]] = st.one_of(
    [
        st.fixed_dictionaries({"run_id": ids, target: ids, "input": _inputs}, optional=_optional)
        for target in ("team_id", "agent_id", "workflow_id")
    ]
)
"""Valid requests, as a producer would send them, with any of the optional fields."""
