"""The evidence as the checks look at it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from tests.chaos.evidence import Asked, Call, Evidence, Upset
from tests.chaos.script import UNJOURNALLED, implied

_JUST_THAWED_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept, in words."""

    session_id: str
    run_id: str
    what: str


class Case:
    """The evidence, looked at in the ways that the checks share."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.bodies: dict[str, list[bytes]] = {}
        """Of each run its different replies, the first one first."""
        for reply in evidence.replies:
            bodies = self.bodies.setdefault(reply.run_id, [])
            if reply.body not in bodies:
                bodies.append(reply.body)
        self.session_of = {
            run_id: session_id for session_id, run_ids in evidence.published.items() for run_id in run_ids
        }

    @cached_property
    def replies(self) -> Mapping[str, Mapping[str, Any]]:
        """The first reply of each run."""
        return {run_id: json.loads(bodies[0]) for run_id, bodies in self.bodies.items()}

    @cached_property
    def calls(self) -> Mapping[str, Sequence[Call]]:
        """The calls of each run."""
        calls: dict[str, list[Call]] = {}
        for call in self.evidence.calls:
            calls.setdefault(call.run_id, []).append(call)
        return calls

    @cached_property
    def late_calls(self) -> Sequence[tuple[Call, float]]:
        """The calls that began after their step was recorded, and when it was."""
        recorded = dict(self.evidence.recorded)
        for call in self.evidence.calls:
            for step in implied(call.step):
                key = (call.run_id, step)
                recorded[key] = min(recorded.get(key, call.began), call.began)
        times = [(call, recorded.get((call.run_id, call.step), call.began)) for call in self.evidence.calls]
        return [(call, at) for call, at in times if at < call.began and call.step not in UNJOURNALLED]

    def was_thawed(self, call: Call, recorded: float) -> bool:
        """Whether its worker has just been thawed, and was frozen when somebody else recorded the step.

        A worker that stands still between its last look and its call makes this one call when it goes on. Nothing in
        the worker can prevent it; only the model's provider could.
        """
        return any(
            one.worker == call.worker
            and one.began < recorded
            and one.ended < call.began < one.ended + _JUST_THAWED_SECONDS
            for one in self.evidence.freezes
        )

    def in_order(self, session_id: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The first replies of a session's runs, in the order in which these were published."""
        for run_id in self.evidence.published[session_id]:
            if run_id in self.replies:
                yield run_id, self.replies[run_id]

    def asked(self, run_id: str) -> Asked:
        """How the run was asked for."""
        return self.evidence.asked.get(run_id, Asked())

    def upset(self, began: float, ended: float, *kinds: Upset) -> bool:
        """Whether something of these kinds was upset at a time between these two."""
        return any(one.kind in kinds and one.began <= ended and one.ended >= began for one in self.evidence.upsets)

    def never_started(self, run_id: str) -> bool:
        """Whether the run was answered as one that was never started: refused, or cancelled before."""
        return run_id in self.replies and self.replies[run_id]["turn"] is None

    def of_run(self, run_id: str, what: str) -> Violation:
        """A violation that a run has met with."""
        return Violation(self.session_of.get(run_id, "?"), run_id, what)


Check = Callable[[Case], Iterator[Violation]]
