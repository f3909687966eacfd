"""Teams as a user would write them, on OpenAI's models, which a test's own server plays.

Models are called for their parts: `main` answers or leads, the others by what they stand for.
"""

from __future__ import annotations

import asyncio
import os
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolFuncEither
from pydantic_ai.usage import UsageLimits

from teamturn import SingleAgent, Team, Turn, Workflow

# Not named as a key: what is, the log blackens, and a test would not see it leak.
_provider = OpenAIProvider(base_url=os.environ["TEST_MODEL_URL"], api_key=os.environ["TEST_MODEL_CREDENTIAL"])


def _chat(part: str) -> Model:
    return OpenAIChatModel(part, provider=_provider)


def _responses(part: str) -> Model:
    return OpenAIResponsesModel(part, provider=_provider)


def _agent(part: str) -> Agent[Turn, str]:
    return Agent(_chat(part), name=part, deps_type=Turn)


class City(BaseModel):
    name: str


def look_up(what: str = "it") -> str:
    return f"found {what}"


def look_up_all(what: str) -> dict[str, list[str]]:
    return {"found": [what]}


def remember(context: RunContext[Turn], what: str) -> str:
    context.deps.session_state["remembered"] = what
    return "remembered"


def break_off() -> str:
    raise LookupError(os.environ["TEST_TOOL_TEXT"])


async def take_for_ever() -> str:
    await asyncio.Event().wait()
    return "never"


_tools: list[ToolFuncEither[Turn, ...]] = [look_up, look_up_all, remember, break_off, take_for_ever]

everything = [
    # The retries of the defaults, and only one where the model fails for ever: a test would wait for them.
    Team(id="patient", model=_chat("main"), tools=_tools),
    Team(id="patient_responses", model=_responses("main"), tools=_tools),
    Team(id="plain", model=_chat("main"), model_retries=1),
    Team(id="plain_responses", model=_responses("main"), model_retries=1),
    Team(id="lead", model=_chat("main"), members=[_agent("good"), _agent("bad")], model_retries=1),
    Team(id="spared", model=_chat("main"), fallback_models=[_responses("spare")], model_retries=1),
    Team(id="few_requests", model=_chat("main"), tools=_tools, usage_limits=UsageLimits(request_limit=2)),
    Team(id="few_tokens", model=_chat("main"), tools=_tools, usage_limits=UsageLimits(total_tokens_limit=20)),
    Team(id="quits", model=_chat("main"), instructions=lambda _: sys.exit("for good")),
    Team(id="hasty", model=_chat("main"), tools=_tools, timeout=2),
    Team(id="brisk_tools", model=_chat("main"), tools=_tools, tool_timeout=0.2),
    Team(id="structured", model=_chat("main"), output_type=City),
    Team(id="structured_responses", model=_responses("main"), output_type=City),
    Team(id="panel", model=_chat("main"), mode="broadcast", members=[_agent("good"), _agent("bad")], model_retries=1),
    Team(
        id="tolerant_panel",
        model=_chat("main"),
        mode="broadcast",
        members=[_agent("good"), _agent("bad")],
        tolerate_member_failures=True,
        model_retries=1,
    ),
    Team(id="desk", model=_chat("main"), mode="route", members=[_agent("good"), _agent("bad")], model_retries=1),
    SingleAgent(_agent("main"), id="clerk", model_retries=1),
    Workflow("line", [_agent("good"), _agent("main")], add_history_to_steps=True, model_retries=1),
]
