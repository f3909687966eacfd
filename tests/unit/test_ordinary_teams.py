"""Modules of teams as users write them; that they are typed is checked by mypy, which deploy/test runs on them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.data import ordinary_teams
from tests.support.workers import ROOT
from tests.unit.examples import a_turn


async def test_steps_read_the_state_the_metadata_and_the_results_before_them() -> None:
    turn = a_turn(workflow_id="counted", session_state={"seen": 1}, metadata={"language": "FR"})
    assert await ordinary_teams.counted.run(turn) == "fr: 3, 4"
    assert turn.session_state["words"] == ["first", "hello"]


async def test_a_step_of_a_turn_returns_what_can_be_taken_apart() -> None:
    answer: Any = await ordinary_teams.places(a_turn())
    assert answer.places == ["Paris", "hello"]


@pytest.mark.parametrize(
    ("page", "example"), [("README.md", "my_teams.py"), ("worker/client/README.md", "producer.py")]
)
def test_the_modules_on_the_pages_are_the_examples_that_are_checked(page: str, example: str) -> None:
    shown = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert shown == [(ROOT / "deploy" / "examples" / example).read_text(encoding="utf-8")]
