"""What a turn is asked where that is not what its request says by itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.requests import Input, RunRequest, TextPart
from worker.executors.pauses import Origin


def asked_together(first: RunRequest, joined: Sequence[RunRequest]) -> RunRequest:
    """Return what the first request asks with those that have joined it: ids and fingerprint are the first one's.

    The inputs in their order, texts a line each; states and metadata laid over each other in that order; the earliest
    deadline.
    """
    if not joined:
        return first
    every = [first, *joined]
    state, metadata = dict(first.session_state), dict(first.metadata)
    for one in joined:
        state |= one.session_state
        metadata |= one.metadata
    together = {
        "input": _inputs([one.input for one in every]),
        "session_state": state,
        "metadata": metadata,
        "deadline": min((one.deadline for one in every if one.deadline is not None), default=None),
        "fingerprint": first.fingerprint,
    }
    return first.model_copy(update=together)


def asked_again(request: RunRequest, origin: Origin) -> RunRequest:
    """Return what a request asks that goes on with a paused run: what that was asked."""
    return request.model_copy(update={"input": origin.input, "fingerprint": request.fingerprint})


def _inputs(given: Sequence[Input]) -> Input:
    texts = [one for one in given if isinstance(one, str)]
    if len(texts) == len(given):
        return "\n".join(texts)
    return [part for one in given for part in ([TextPart(type="text", text=one)] if isinstance(one, str) else one)]
