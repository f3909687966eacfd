"""A module of teams as it is ordinarily written: mypy, which is strict here, has nothing to say about it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_ai import Agent, RunContext
from pydantic_ai.models.test import TestModel

from teamturn import Step, Team, Turn, Workflow, executor


async def count(turn: Turn) -> dict[str, int]:
    turn.session_state["seen"] = turn.session_state.get("seen", 0) + 1
    words: list[str] = turn.session_state.setdefault("words", [])
    words.append(turn.input)
    return {"seen": turn.session_state["seen"], "words": len(words)}


async def sum_up(turn: Turn) -> str:
    language = turn.metadata.get("language", "en").lower()
    seen: int = turn.results["count"]["seen"]
    return f"{language}: {seen + 1}, {turn.results['count']['words'] * 2}"


@dataclass
class Found:
    places: list[str]


@executor("places")
async def places(turn: Turn) -> Found:
    found = await turn.step("find", lambda: {"names": ["Paris", turn.input]})
    await turn.emit({"found": found["names"]})
    last = [run.content["places"] for run in turn.history if isinstance(run.content, dict)]
    return Found(found["names"] + [name for several in last for name in several])


def remember(context: RunContext[Turn], name: str) -> str:
    context.deps.session_state["names"] = [*context.deps.session_state.get("names", []), name]
    return "remembered"


def greeting(turn: Turn) -> str:
    return f"You talk to {turn.user_id}."


plain = Agent(TestModel(), name="plain")
helper = Agent(TestModel(), name="helper", deps_type=Turn, tools=[remember])
begun = {"words": ["first"], "names": list[str]()}

guide = Team("guide", TestModel(), members=[plain, helper], instructions=greeting, tools=[remember])
counted = Workflow("counted", steps=[Step("count", count), sum_up], session_state=begun)
teams = [guide, helper, counted, places]
