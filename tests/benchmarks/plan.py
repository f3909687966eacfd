"""How much is measured: enough for a figure, or only so much that every step is run once."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. The defaults are to take no more than ten minutes on two cores."""

    rounds: int = 5
    """How often each side of a comparison of paces is measured."""
    turns: int = 6_000
    """Of a round with an instant executor."""
    sessions: int = 1_000
    agno_turns: int = 500
    """Of a round of Agno's."""
    agno_team_turns: int = 3_000
    """Of a round of ours with Agno's team: so many that those under way at once are a small part of them."""
    agno_rounds: int = 3
    handoff_turns: int = 2_500
    handoff_rounds: int = 3
    lone_requests: int = 300
    """Of each side."""
    long_session: int = 10_000
    agno_session: int = 1_000
    agno_lone_requests: int = 60
    in_flight: int = 6_000
    """Sessions, each with two requests."""
    in_flight_seconds: float = 5
    in_flight_model: int = 1_500
    waiting_turns: tuple[int, int] = (256, 1_000)
    """How many turns wait for their model when the memory is looked at."""
    long_sessions: int = 32
    """Of the turns that wait, those in sessions of `long_session` runs."""
    window_seconds: float = 8
    """In which the paces of a fleet are taken."""
    stories: tuple[str, ...] = ("joined", "told to leave", "killed", "frozen")
    """What happens to a fleet."""

    def with_rounds(self, rounds: int) -> Plan:
        """The same, with so many rounds of everything that has rounds."""
        return replace(self, rounds=rounds, agno_rounds=rounds, handoff_rounds=rounds)


QUICK = Plan(
    rounds=1,
    turns=300,
    sessions=100,
    agno_turns=60,
    agno_team_turns=60,
    agno_rounds=1,
    handoff_turns=200,
    handoff_rounds=1,
    lone_requests=10,
    long_session=500,
    agno_session=100,
    agno_lone_requests=5,
    in_flight=200,
    in_flight_seconds=1,
    in_flight_model=50,
    waiting_turns=(10, 50),
    long_sessions=2,
    window_seconds=2,
    stories=("joined", "killed"),
)
"""For a smoke run: its figures say nothing."""
