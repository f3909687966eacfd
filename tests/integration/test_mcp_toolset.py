"""A team with an MCP server's tools: a real server, as a process of its own, over standard input and output."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from fastmcp.client.transports import StdioTransport
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.support.workers import ROOT
from tests.unit.examples import NOW, a_turn
from tests.unit.models import Recorded, text
from worker.executors.attempt import attempt
from worker.executors.turn import Turn
from worker.team.team import Team


def _asks_the_price(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    returned = [part.model_response_str() for part in last.parts if isinstance(part, ToolReturnPart)]
    if returned:
        return text(returned[0])
    (tool,) = info.function_tools
    return ModelResponse(parts=[ToolCallPart(tool.name, {"thing": "tea"})])


def _shop() -> Team:
    server = StdioTransport(sys.executable, [str(ROOT / "tests" / "data" / "mcp_prices.py")], keep_alive=False)
    return Team("shop", Recorded(_asks_the_price).model, toolsets=[MCPToolset[Turn](server)])


async def test_a_server_that_can_not_be_reached_has_a_code_and_is_worth_another_try() -> None:
    nowhere = MCPToolset[Turn](StdioTransport(sys.executable, ["-c", "raise SystemExit"], keep_alive=False))
    for toolset in (nowhere, lambda _: nowhere):
        team = Team("shop", Recorded(_asks_the_price).model, toolsets=[toolset])
        outcome = await attempt(team, a_turn(), limit=timedelta(seconds=60), now=NOW, deadline=None)
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.is_retryable) == (ErrorCode.TOOL_FAILED, True)
        assert "MCPToolset" in outcome.error.message


async def test_a_team_calls_the_tools_of_an_mcp_server_in_turns_one_after_the_other_and_at_once() -> None:
    shop = _shop()
    limits = {"limit": timedelta(seconds=60), "now": NOW, "deadline": None}
    first = await attempt(shop, a_turn(), **limits)  # type: ignore[arg-type]  # the limits of one attempt
    others = await asyncio.gather(*(attempt(shop, a_turn(), **limits) for _ in range(3)))  # type: ignore[arg-type]
    assert {(outcome.status, outcome.content) for outcome in (first, *others)} == {(RunStatus.COMPLETED, "tea costs 7")}
