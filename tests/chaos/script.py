"""What is asked of the teams, step by step: the one thing that the teams, their model and the checks agree on. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Final, Self

from tests.support.model_wire import Calls, Says

DIRECT: Final = "step"
"""The model that executors and tools call by themselves: each of their steps is one call of it."""
BEGUN: Final = "begun"
BETWEEN: Final = "between"
UNJOURNALLED: Final = frozenset({BEGUN, BETWEEN})
"""Calls that are no steps: in every attempt they are made again. They are made only where they are to be held."""
UNREPEATABLE: Final = frozenset({"pay", "buyer/pay"})
"""Steps that were not declared repeatable. A model request always is."""

_AFTER: Final[Mapping[str, tuple[str, ...]]] = {
    BETWEEN: ("first",),
    "pay": ("first",),
    "last": ("pay",),
    "reader/1": ("leader/1",),
    "buyer/1": ("leader/1",),
    "buyer/pay": ("buyer/1",),
    "buyer/2": ("buyer/pay",),
    "leader/2": ("reader/1", "buyer/2"),
}
"""What must have been recorded before a step can begin: it is asked with the others' results."""

_SHORTEST_SECONDS: Final = 0.005
_LONGEST_SECONDS: Final = 0.12


@dataclass(frozen=True, slots=True)
class Order:
    """The input of a request, and what a member, a tool or a step is told of it."""

    run: str
    part: str = "leader"
    """Whose task it is."""
    step: str = ""
    """The step, where it is named: in a call of the model DIRECT."""
    hold: str = ""
    """The step whose first call the model holds back."""
    poison: bool = False
    """Whether it kills the worker that takes it."""

    @property
    def text(self) -> str:
        """The same as text."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def read(cls, text: str) -> Self:
        """Read it again."""
        return cls(**json.loads(text))

    def of(self, part: str) -> str:
        """The text for a member."""
        return replace(self, part=part).text

    def at(self, step: str) -> Self:
        """The same at a step."""
        return replace(self, step=step)


def step_of(model: str, order: Order, results: int) -> str:
    """Return which step of a run asks a model that has been given so many tool results."""
    return order.step if model == DIRECT else f"{model}/{1 if results == 0 else 2}"


def answer_of(order: Order, step: str) -> Says | Calls:
    """Return what the model answers to a step: always the same."""
    match step:
        case "leader/1":
            return Calls(
                *(
                    ("delegate_task", {"member_id": member, "task": order.of(member)}, f"to-{member}")
                    for member in ("reader", "buyer")
                )
            )
        case "buyer/1":
            return Calls(("pay", {"order": order.text}, "pay-1"))
        case _:
            return Says(f"{step} of {order.run}")


def seconds_of(run: str, step: str) -> float:
    """Return how long the model thinks about it: always the same."""
    share = hashlib.md5(f"{run} {step}".encode(), usedforsecurity=False).digest()[0] / 255
    return _SHORTEST_SECONDS + share**3 * (_LONGEST_SECONDS - _SHORTEST_SECONDS)


@cache
def implied(step: str) -> frozenset[str]:
    """Return the steps that were recorded if this one has begun."""
    before = _AFTER.get(step, ())
    return frozenset(before).union(*(implied(one) for one in before))


_KEY: Final = re.compile(
    r"(?:(?P<member>reader|buyer)\[\w+\]/)?model\.request#(?P<request>\d+)"
    r"|buyer\[\w+\]/(?P<tool>tool:pay@pay-1)#1"
    r"|(?P<own>first|pay|last)#1"
)


def logical_step(key: str) -> str:
    """Return the step of the script that a key of the journal (`ai.turn_steps`) stands for.

    The only place that knows how the journal names its steps. Raises ValueError for a key that it does not know: what
    is recorded under it could be repeated unnoticed.
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"the journal has a step {key!r}, and no step of the script is called so")
    if found["tool"]:
        return "buyer/pay"
    return found["own"] or f"{found['member'] or 'leader'}/{found['request']}"
