"""`@executor`: an async function as something that takes turns."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pydantic import JsonValue

from schemas.ids import SessionType
from tests.unit.examples import a_turn
from worker.executors.function import executor
from worker.executors.turn import Turn


async def _echo(turn: Turn) -> JsonValue:
    return turn.input


async def _of_nothing() -> str:
    return ""


async def _of_two(turn: Turn, more: str) -> str:
    return turn.input + more


class _Callable:
    """A callable object with a method that is not async."""

    def __call__(self, turn: Turn) -> JsonValue:
        return turn.input


@pytest.mark.parametrize("kind", ["team", "agent", "workflow"])
async def test_the_function_takes_turns_under_the_id_and_kind(kind: Any) -> None:
    made = executor("echo", kind=kind)(_echo)
    assert (made.target.type, made.target.id) == (SessionType(kind), "echo")
    assert (made.name, made.model_name) == ("echo", None)
    assert await made.run(a_turn()) == "hello"


async def test_calling_it_calls_the_function_as_in_a_test_of_it() -> None:
    assert await executor("echo")(_echo)(a_turn()) == "hello"


def test_it_is_a_team_with_three_runs_of_history_unless_told_otherwise() -> None:
    made = executor("echo")(_echo)
    assert (made.target.type, made.history_runs) == (SessionType.TEAM, 3)


@pytest.mark.parametrize("history_runs", [0, 1, 50, None])
def test_history_runs_are_as_asked(history_runs: int | None) -> None:
    assert executor("echo", history_runs=history_runs)(_echo).history_runs == history_runs


@pytest.mark.parametrize(
    "wrong", [{"id": ""}, {"id": "a\nb"}, {"id": "é" * 128}, {"kind": "crew"}, {"kind": "TEAM"}, {"history_runs": -1}]
)
def test_a_wrong_id_kind_or_history_is_a_value_error_that_names_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"executor|SessionType"):
        executor(**{"id": "echo"} | wrong)


@pytest.mark.parametrize(
    "function",
    [lambda turn: turn.input, partial(lambda turn: turn.input), _Callable(), _of_nothing, _of_two],
    ids=["def", "partial", "object", "of nothing", "of two"],
)
def test_a_function_that_is_not_async_or_does_not_take_the_turn_is_a_type_error(function: Any) -> None:
    with pytest.raises(TypeError, match="async"):
        executor("echo")(function)


async def test_a_partial_of_an_async_function_takes_turns() -> None:
    async def greet(greeting: str, turn: Turn) -> JsonValue:
        return f"{greeting} {turn.input}"

    assert await executor("greet")(partial(greet, "oh"))(a_turn()) == "oh hello"
