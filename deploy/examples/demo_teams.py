"""Teams to try teamturn with.

The first of these commands starts a worker that takes their turns; the second,
in another shell, asks one of them.

    cd deploy/examples && TEAMTURN_TEAMS=demo_teams:teams DEMO_MODEL=openai:gpt-5-mini teamturn worker --migrate
    teamturn ask "What is the capital of France?" --team demo

The settings say where RabbitMQ and Postgres are.
"""

# ruff: noqa: INP001 - a module of its own, found because the worker is started in its directory
import os

from pydantic import JsonValue
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from teamturn import Team, Turn, executor


def model() -> Model | str:
    """Return what DEMO_MODEL names: a model of a provider, or the URL of a server with OpenAI's API.

    A name such as `openai:gpt-5-mini` is enough for pydantic-ai, which takes the key from the environment.
    """
    name = os.environ.get("DEMO_MODEL", "openai:gpt-5-mini")
    if not name.startswith(("http://", "https://")):
        return name
    return OpenAIChatModel("smollm2", provider=OpenAIProvider(base_url=name, api_key="none"))


# The same question gets the same answer. Models that reason refuse a temperature, so it is not for all.
steady = ModelSettings(temperature=0, max_tokens=200) if not isinstance(model(), str) else None

# A team is a leader model and its members; this one has none, and just answers. It is shown the session's last
# three runs, so that it can be asked about them.
demo = Team(
    id="demo",
    model=model(),
    instructions="Answer in one short sentence.",
    history_runs=3,
    model_settings=steady,
)

# Every member answers the same question, at the same time; then the leader sums up.
panel = Team(
    id="panel",
    model=model(),
    mode="broadcast",
    members=[
        Agent(name="brief", instructions="Answer in one short sentence.", model_settings=steady),
        Agent(
            name="helpful",
            instructions="You are a helpful assistant. Answer in one short sentence.",
            model_settings=steady,
        ),
    ],
    instructions="Answer in one short sentence.",
    model_settings=steady,
)


# Any async function can take turns as well. What it leaves in `session_state` is there in the session's next turn.
@executor("echo", kind="team")
async def echo(turn: Turn) -> JsonValue:
    """Say how often this session has been here, and what was said."""
    seen = turn.session_state.get("seen", 0)
    times = seen + 1 if isinstance(seen, int) else 1
    turn.session_state["seen"] = times
    return f"{times}: {turn.input}"


teams = [demo, panel, echo]
