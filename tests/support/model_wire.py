"""The JSON of OpenAI's two APIs, chat completions and responses: what is asked, and how an answer looks in each."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Api = Literal["chat", "responses"]
Arguments = Mapping[str, Any] | str
Call = tuple[str, Arguments] | tuple[str, Arguments, str]


@dataclass(frozen=True)
class Asked:
    """A request to a model, which reads alike in either API."""

    api: Api
    body: Json
    at: float
    """When it was received, in the event loop's time."""
    api_key: str | None

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def messages(self) -> list[dict[str, str]]:
        """Who said what: role (user, assistant, tool, or call, whose content is `name(arguments)`) and content each."""
        return [message for message in _messages(self) if message["role"] not in _INSTRUCTING]

    @property
    def instructions(self) -> str:
        """What the model is told to do, by whichever means, with an empty line between one text and the next."""
        return "\n\n".join(message["content"] for message in _messages(self) if message["role"] in _INSTRUCTING)

    @property
    def prompt(self) -> str:
        """The last message of the user."""
        return [message["content"] for message in self.messages if message["role"] == "user"][-1]

    @property
    def tools(self) -> list[str]:
        """The names of the tools that it may call; the types of those that are the provider's own."""
        tools = [tool.get("function", tool) for tool in self.body.get("tools", ())]
        return [tool.get("name", tool.get("type")) for tool in tools]


@dataclass(frozen=True)
class Says:
    """A text."""

    text: str
    input_tokens: int = 10
    output_tokens: int = 2


@dataclass(frozen=True, init=False)
class Calls:
    """Tool calls: `(name, arguments)` or `(name, arguments, id)` each. Arguments that are text are sent as they are."""

    calls: tuple[Call, ...]
    input_tokens: int
    output_tokens: int

    def __init__(self, *calls: Call, input_tokens: int = 10, output_tokens: int = 2) -> None:
        for name, value in (("calls", calls), ("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            object.__setattr__(self, name, value)


def completion(asked: Asked, answer: Says | Calls) -> Json:
    """An answer of the chat completions API."""
    if isinstance(answer, Says):
        said: Json = {"content": answer.text}
    else:
        said = {"content": None, "tool_calls": list(_tool_calls(answer))}
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": _finish_reason(answer)}
    return {**_envelope(asked), "object": "chat.completion", "choices": [choice], "usage": _chat_usage(answer)}


def chunks(asked: Asked, answer: Says | Calls) -> Iterator[Json]:
    """The events of a streamed answer of the chat completions API: the role, the text in halves, and how it ended."""
    if isinstance(answer, Says):
        half = len(answer.text) // 2
        said: list[Json] = [{"content": answer.text[:half]}, {"content": answer.text[half:]}]
    else:
        said = [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(_tool_calls(answer))]
    common = {**_envelope(asked), "object": "chat.completion.chunk"}
    for delta in ({"role": "assistant", "content": ""}, *said):
        yield {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": _finish_reason(answer)}]}
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        yield {**common, "choices": [], "usage": _chat_usage(answer)}


def response(asked: Asked, answer: Says | Calls) -> Json:
    """An answer of the responses API."""
    if isinstance(answer, Says):
        text = {"type": "output_text", "text": answer.text, "annotations": []}
        output: list[Json] = [{"id": _id("msg"), "type": "message", "role": "assistant", "content": [text]}]
    else:
        calls = _tool_calls(answer)
        output = [{"id": _id("fc"), "type": "function_call", "call_id": one["id"], **one["function"]} for one in calls]
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": asked.model,
        "output": [{**item, "status": "completed"} for item in output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": _responses_usage(answer),
    }


_INSTRUCTING = ("system", "developer")


def _messages(asked: Asked) -> Iterator[dict[str, str]]:
    return _chat_messages(asked.body) if asked.api == "chat" else _responses_messages(asked.body)


def _chat_messages(body: Json) -> Iterator[dict[str, str]]:
    for message in body["messages"]:
        if message.get("content") is not None:
            yield {"role": message["role"], "content": _text(message["content"])}
        for call in message.get("tool_calls") or ():
            yield _called(**call["function"])


def _responses_messages(body: Json) -> Iterator[dict[str, str]]:
    given = body["input"]
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        match item:
            case {"type": "function_call", "name": name, "arguments": arguments}:
                yield _called(name, arguments)
            case {"type": "function_call_output", "output": output}:
                yield {"role": "tool", "content": _text(output)}
            case {"role": role, "content": content}:
                yield {"role": role, "content": _text(content)}
            case _:  # reasoning and the like: nobody said it
                pass
    if body.get("instructions"):  # last, as among the system messages of a chat
        yield {"role": "system", "content": body["instructions"]}


def _called(name: str, arguments: str) -> dict[str, str]:
    return {"role": "call", "content": f"{name}({arguments})"}


def _text(content: str | list[Json]) -> str:
    """The text of a message, in which other parts, such as images, are `<type>`."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", f"<{part['type']}>") for part in content)


def _envelope(asked: Asked) -> Json:
    return {"id": _id("chatcmpl"), "created": int(time.time()), "model": asked.model}


def _tool_calls(answer: Calls) -> Iterator[Json]:
    for name, arguments, *given_id in answer.calls:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call_id = given_id[0] if given_id else _id("call")
        yield {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _finish_reason(answer: Says | Calls) -> str:
    return "stop" if isinstance(answer, Says) else "tool_calls"


def _chat_usage(answer: Says | Calls) -> Json:
    total = answer.input_tokens + answer.output_tokens
    return {"prompt_tokens": answer.input_tokens, "completion_tokens": answer.output_tokens, "total_tokens": total}


def _responses_usage(answer: Says | Calls) -> Json:
    return {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
