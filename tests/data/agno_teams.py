"""Agno's teams on workers that are killed: what is called leaves a line in a file of the gates."""

from __future__ import annotations

import os
from typing import Any

from agno.models.message import Message
from agno.run import RunContext
from agno.team import Team

from tests.data.durable_teams import through
from tests.unit.agno_objects import Scripted, a_team, an_agent, calls, delegates, results_in


def _says(name: str, answer: Any) -> Scripted:
    async def respond(messages: list[Message]) -> Any:
        found = results_in(messages)
        await through(f"{name}-{len(found)}")
        return answer(found)

    return Scripted(respond)


async def pay(run_context: RunContext, amount: int) -> str:
    """Pay so much."""
    assert run_context.session_state is not None
    run_context.session_state["paid"] = run_context.session_state.get("paid", 0) + amount
    await through("pay")
    return f"receipt {amount}"


def _crew(id: str, leader: str, payer: str, asker: str) -> Team:  # noqa: A002 - as in Team
    # Ids of calls are random with a provider: another attempt would be given others.
    def pays(found: list[str]) -> Any:
        return f"{payer}: {found[0]}" if found else calls(("pay", {"amount": 3}), ids=[os.urandom(4).hex()])

    def leads(found: list[str]) -> Any:
        return f"{leader}: {', '.join(found)}" if found else delegates(("payer", "pay"), ("asker", "ask"))

    members = [
        an_agent(_says(payer, pays), id="payer", name="payer", tools=[pay]),
        an_agent(_says(asker, lambda _: f"{asker}: asked"), id="asker", name="asker"),
    ]
    return a_team(_says(leader, leads), *members, id=id, name=id, add_datetime_to_context=True)


everything = [
    _crew("crew-stuck-leader", "leader-gate", "payer", "asker"),
    _crew("crew-stuck-asker", "leader", "payer", "asker-gate"),
]
