"""Six recipes: what teams are made of, each part where it is of use.

The first of these commands starts a worker that takes their turns; the second,
in another shell, asks one of them.

    cd deploy/examples && OPENAI_API_KEY=… TEAMTURN_TEAMS=recipes:teams teamturn worker --migrate
    teamturn ask "My last invoice is too high." --team support

RECIPE_MODEL names another model that pydantic-ai knows, and RECIPE_FALLBACK_MODEL
the one that is asked where the first one fails.
"""

# ruff: noqa: INP001 - a module of its own, found because the worker is started in its directory
import os
from decimal import Decimal
from typing import Any, Self

import httpx2
from pydantic import BaseModel, Field, JsonValue, model_validator
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

from teamturn import Step, Team, Turn, Workflow

MODEL = os.environ.get("RECIPE_MODEL", "openai:gpt-5-mini")
FALLBACK_MODEL = os.environ.get("RECIPE_FALLBACK_MODEL", "openai:gpt-5-nano")

# support: A desk that sends each question to one of two specialists. The leader only chooses, by what the members'
# descriptions say they are good for; the chosen one is given the question as it is, with the conversation so far, and
# answers itself: one request to a model more than without a desk.
support = Team(
    id="support",
    model=MODEL,
    mode="route",
    members=[
        Agent(
            name="billing",
            description="Invoices, payments, refunds, prices.",
            instructions="You answer questions about bills. Never promise a refund; say who decides it.",
        ),
        Agent(
            name="technical",
            description="Errors, installation, anything that does not work.",
            instructions="You solve technical problems, one step at a time.",
        ),
    ],
    instructions="A question about both goes to billing.",
)

# panel: Several views of one question. Both members answer it at the same time, and the leader weighs what they
# said. If one of them fails, the leader is told so, and answers from what the other one said.
panel = Team(
    id="panel",
    model=MODEL,
    mode="broadcast",
    members=[
        Agent(name="optimist", instructions="Say what speaks for it, in three sentences."),
        Agent(name="sceptic", instructions="Say what speaks against it, in three sentences."),
    ],
    instructions="Weigh both sides, and end with a recommendation.",
    tolerate_member_failures=True,
    history_runs=0,
)


# invoice: Structured output. The reply's `content` is the invoice as a JSON object, or there is none: what does not
# validate is told to the model, with the reason, and it may try again twice; then the run ends as `invalid_output`.
class Line(BaseModel):
    """A line of an invoice."""

    text: str
    amount: Decimal = Field(description="Net, in the invoice's currency")


class Invoice(BaseModel):
    """An invoice. Its lines make its total."""

    number: str
    currency: str = Field(pattern="^[A-Z]{3}$", description="ISO 4217")
    lines: list[Line] = Field(min_length=1)
    total: Decimal

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if (lines := sum(line.amount for line in self.lines)) != self.total:
            raise ValueError(f"the lines make {lines}, and the total says {self.total}")
        return self


invoice = Team(
    id="invoice",
    model=MODEL,
    output_type=Invoice,
    instructions="Read the invoice.",
    retries={"output": 2},
    history_runs=0,
)


# shop: A session that remembers. The cart is kept in the session's state by a tool; the model is shown the state, and
# notes there whatever else is worth keeping. What is older than the last two runs, it knows from a summary.
def add_to_cart(context: RunContext[Turn], item: str, count: int = 1) -> str:
    """Put something into the customer's cart."""
    cart: Any = context.deps.session_state["cart"]
    cart[item] = cart.get(item, 0) + count
    return f"There are now {cart[item]} of {item} in the cart."


shop = Team(
    id="shop",
    model=MODEL,
    tools=[add_to_cart],
    instructions="You sell tea. Keep the customer's name and address in the session's state.",
    session_state={"cart": {}},
    add_session_state_to_context=True,
    enable_agentic_state=True,
    history_runs=2,
    session_summary=True,
)


# report: Steps in a fixed order: an agent, a team, and a function that checks what they made without asking a model.
# An agent or a team is given the request and the results of the steps before; a function finds those in
# `turn.results`. The last step's result is the reply's `content`.
MOST_WORDS = 250

researcher = Agent(MODEL, name="researcher", instructions="List what is known about the subject, with sources.")
writers = Team(
    id="writers",
    model=MODEL,
    members=[
        Agent(name="author", description="Writes the first version.", instructions="Write 200 words from the notes."),
        Agent(name="editor", description="Corrects a text.", instructions="Correct the text. Make nothing up."),
    ],
    instructions="Have the author write, then have the editor correct it. Answer with the corrected text only.",
)


async def check(turn: Turn) -> JsonValue:
    """Return the report, and whether it keeps to its length."""
    text = str(turn.results["write"])
    words = len(text.split())
    return {"report": text, "words": words, "too_long": words > MOST_WORDS}


report = Workflow(
    id="report",
    steps=[Step("research", researcher), Step("write", writers), check],
    usage_limits=UsageLimits(request_limit=20),
)


# steady: Limits, and what happens when something fails. A turn that reaches one of its limits ends as
# `usage_limit_exceeded`. Where the model fails, the second one is asked; where both do, both again, up to four times,
# after waiting. A tool that takes too long is told to the model, and so is one that raises ModelRetry.
async def exchange_rates(currency: str) -> dict[str, Any]:
    """Return today's exchange rates of a currency, such as EUR."""
    url = os.environ.get("RATES_URL", "https://api.frankfurter.dev/v1/latest")
    async with httpx2.AsyncClient() as client:
        try:
            answer = (await client.get(url, params={"base": currency})).raise_for_status()
        except httpx2.HTTPError as error:
            raise ModelRetry("the rates can't be had at the moment") from error
    rates: dict[str, Any] = answer.json()
    return rates


steady = Team(
    id="steady",
    model=MODEL,
    fallback_models=[FALLBACK_MODEL],
    tools=[exchange_rates],
    usage_limits=UsageLimits(request_limit=5, total_tokens_limit=50_000, cost_limit=Decimal("0.05")),  # USD
    model_settings=ModelSettings(max_tokens=4_000, request_timeout=30),
    model_concurrency=4,  # requests at once to the first model, in each worker process
    model_retries=4,
    timeout=120,  # seconds, for the whole turn
    tool_timeout=2,
    history_runs=0,
)


teams = [support, panel, invoice, shop, report, steady]
