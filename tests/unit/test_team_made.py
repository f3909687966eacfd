"""Making a Team: what can't be is a mistake at the start, and not in a turn."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from schemas.ids import SessionType
from tests.unit.models import member, says
from worker.team.team import Team


def test_a_team_is_named_by_its_id_and_shown_three_runs() -> None:
    made = Team("capital", TestModel())
    assert (made.target.type, made.target.id, made.name) == (SessionType.TEAM, "capital", "capital")
    assert made.history_runs == 3


def test_a_team_can_be_made_as_the_contract_shows_it() -> None:
    made = Team(
        id="capital",
        model=TestModel(),
        members=[],
        mode="coordinate",
        instructions="Answer briefly.",
        history_runs=3,
    )
    assert made.target.id == "capital"


@pytest.mark.parametrize("history_runs", [0, 1, None])
def test_history_runs_are_as_asked(history_runs: int | None) -> None:
    assert Team("t", TestModel(), history_runs=history_runs).history_runs == history_runs


def test_a_team_says_which_model_answers_by_provider_and_name() -> None:
    assert Team("t", TestModel()).model_name == "test:test"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"id": ""}, "team id ''"),
        ({"id": "a\nb"}, "team id"),
        ({"id": "é" * 128}, "255"),
        ({"mode": "chaos"}, "chaos"),
        ({"mode": "COORDINATE"}, "COORDINATE"),
        ({"history_runs": -1}, "-1"),
        ({"members": [member("a"), member("a")]}, "'a'"),
        ({"members": [member("a"), Team("a", says("x"))]}, "'a'"),
        ({"members": [Team("b", says("x")), Team("b", says("y"))]}, "'b'"),
        ({"members": [member("ok"), Agent(TestModel())]}, "member 2 has no name"),
        ({"members": [Agent(TestModel(), name="")]}, "member 1 has no name"),
        ({"members": [Agent(TestModel(), name="a\nb")]}, "the name"),
        ({"members": [Agent(TestModel(), name="é" * 128)]}, "the name"),
        ({"mode": "route"}, "needs members"),
        ({"mode": "broadcast"}, "needs members"),
        ({"mode": "route", "members": [member("a")], "output_type": int}, "a member answers"),
        ({"timeout": 0}, "above 0"),
        ({"model_retries": -1}, "-1"),
        ({"members": ["researcher"]}, "member 1 is str"),
        ({"members": [None]}, "member 1 is NoneType"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_can_not_be_is_a_value_error_that_says_what(wrong: dict[str, Any], reason: str) -> None:
    made: Any = partial(Team, id="lead", model=TestModel())
    with pytest.raises(ValueError, match="team") as failed:
        made(**wrong)
    assert reason in str(failed.value)


def test_one_agent_can_be_in_two_teams_and_a_team_in_another() -> None:
    shared = member("shared")
    inner = Team("inner", says("x"), members=[shared])
    assert Team("outer", says("x"), members=[shared, inner]).target.id == "outer"


@pytest.mark.parametrize("model", ["no-such-model", "nowhere:gpt-5", "openai:gpt-5"])
def test_an_unknown_model_or_a_missing_key_is_an_error_here_and_not_in_a_turn(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(Exception, match=r"nknown model|OPENAI_API_KEY"):
        Team("t", model)
