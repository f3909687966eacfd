"""Arguments of what takes turns, checked when it is made: a mistake ends the start of a worker, not a turn.

A `Kind` says in words what an argument may be, and tells whether it is. Who reads the message is told where it is, by
which name, what it may be, and what was given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from schemas.ids import SessionType, Target

_LONGEST_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """What an argument may be."""

    may_be: str
    """In words, after "is"."""
    fits: Callable[[Any], bool]
    """Whether a value is of the kind, its parts aside."""
    parts: Kind | None = None
    """Of what kind the items of a list are, and the values of a dict."""


def of_type(may_be: str, *types: type) -> Kind:
    """Return the kind of the instances of some types."""
    return Kind(may_be, lambda given: isinstance(given, types))


def one_of(*values: str) -> Kind:
    """Return the kind of what is one of these words."""
    return Kind(" or ".join(map(repr, values)), lambda given: isinstance(given, str) and given in values)


def list_of(what: str, parts: Kind | None = None) -> Kind:
    """Return the kind of lists, and of tuples, but not of text, which is a sequence of its letters."""
    return Kind(f"a list of {what}", is_list, parts)


def optional(kind: Kind) -> Kind:
    """Return the kind of what is None or of that kind."""
    return Kind(f"None or {kind.may_be}", lambda given: given is None or kind.fits(given), kind.parts)


def is_list(given: object) -> bool:
    """Whether it is a list, a tuple, or another sequence that is no text."""
    return isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


FLAG: Final = of_type("True or False", bool)
TEXT: Final = of_type("text", str)
COUNT: Final = Kind(
    "a whole number, 0 or more",
    lambda given: _is_number(given) and isinstance(given, int) and given >= 0,
)
SECONDS: Final = Kind("a number of seconds above 0", lambda given: _is_number(given) and 0 < given < math.inf)
LONG_SECONDS: Final = Kind(
    "a number of seconds above 0, at most ten years", lambda given: _is_number(given) and 0 < given <= 10 * 366 * 86_400
)
"""What Postgres can add to a time."""
HISTORY_RUNS: Final = optional(COUNT)


def check(where: str, kinds: Mapping[str, Kind], given: Mapping[str, object]) -> None:
    """Check the arguments that there are kinds of. Raises ValueError, beginning with `where`, for a wrong one."""
    for name, kind in kinds.items():
        if name in given:
            check_one(where, name, kind, given[name])


def check_one(where: str, name: str, kind: Kind, given: object) -> None:
    """Check one argument, its parts included. Raises ValueError as `check` does."""
    if not kind.fits(given):
        raise ValueError(f"{where}: {name} is {kind.may_be}, not {shown(given)}")
    if kind.parts is not None:
        for key, part in _parts(given):
            check_one(where, f"{name}[{key!r}]", kind.parts, part)


def _parts(given: object) -> Iterator[tuple[object, object]]:
    if isinstance(given, Mapping):
        yield from given.items()
    elif isinstance(given, Sequence) and is_list(given):
        yield from enumerate(given)


def shown(given: object) -> str:
    """Return a value as a message shows it: what is short, as it is; else what it is."""
    match given:
        case str() if len(given) > _LONGEST_SHOWN:
            return f"a text of {len(given)} characters"
        case None | bool() | int() | float() | str():
            return repr(given)
        case type():
            return f"the class {given.__name__}"
        case _ if inspect.isroutine(given):
            return f"the function {given.__name__}"
        case _:
            return type(given).__name__


def takes(function: Callable[..., object], *given: object) -> bool:
    """Whether a function can be called with so many arguments by position; one that can't be told is believed to."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


def target_of(kind: SessionType, target_id: str, what: str) -> Target:
    """Return a target. Raises ValueError, beginning with `what`, for an id that can't be one."""
    try:
        return Target(type=kind, id=target_id)
    except ValidationError as error:
        raise ValueError(f"{what}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
