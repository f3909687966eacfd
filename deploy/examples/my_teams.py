# my_teams.py
from pydantic_ai import Agent

from teamturn import Team, Turn, Workflow, executor

researcher = Agent("openai:gpt-5", name="researcher", description="Looks things up.")

capital = Team(
    id="capital",
    model="openai:gpt-5",  # any model pydantic-ai knows, or a Model object
    members=[researcher],  # pydantic-ai Agents, or Teams
    mode="coordinate",  # or "route": one member's answer is the answer; "broadcast": all answer, the leader sums up
    instructions="Answer briefly.",
    history_runs=3,  # completed runs of the session that the model is shown; None: all, 0: none
)


async def checked(turn: Turn) -> str:
    return f"{turn.results['capital']} (asked: {turn.input})"


report = Workflow("report", steps=[researcher, capital, checked])  # each step sees the results before it


@executor("echo", kind="team")  # anything else that can take a turn: "team", "agent" or "workflow"
async def echo(turn: Turn) -> str:
    turn.session_state["seen"] = turn.session_state.get("seen", 0) + 1
    return turn.input


teams = [capital, researcher, report, echo]  # requests name them by team_id, agent_id, workflow_id
