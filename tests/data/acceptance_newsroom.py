"""A team with two members, as a user would write it, on models that need no network."""

from __future__ import annotations

from collections.abc import Callable

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import ToolDefinition

from teamturn import Team


def _asks_both_members(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Give both members a task by whatever tool the team offers; when they have answered, say what they said."""
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    answers = [str(part.content) for part in last.parts if isinstance(part, ToolReturnPart)]
    if answers:
        return ModelResponse(parts=[TextPart(content=" and ".join(answers))])
    tool = next(one for one in info.function_tools if any("member" in name for name in _fields(one)))
    fields = _fields(tool)
    member = next(name for name in fields if "member" in name)
    task = next(name for name in fields if name != member)
    return ModelResponse(
        parts=[
            ToolCallPart(tool_name=tool.name, args={member: name, task: f"a task for {name}"})
            for name in ("weather", "traffic")
        ]
    )


def _fields(tool: ToolDefinition) -> list[str]:
    return list(tool.parameters_json_schema["properties"])


def _says(text: str) -> Callable[[list[ModelMessage], AgentInfo], ModelResponse]:
    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart(content=text)])

    return answer


newsroom = Team(
    id="newsroom",
    model=FunctionModel(_asks_both_members),
    members=[
        Agent(FunctionModel(_says("it rains")), name="weather"),
        Agent(FunctionModel(_says("roads are wet")), name="traffic"),
    ],
    mode="coordinate",
)
