"""JSON Schemas (2020-12) of every message, from the models: `schemas/json/` is what this makes, as files.

They say what crosses the broker. So a request's `run_id` may be absent, since the AMQP message_id can be it; and what
is told in the models' docstrings is told as descriptions.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from schemas.control import CancelRequest
from schemas.dead_letters import DeadLetterHeaders
from schemas.events import RunEvent
from schemas.replies import RunReply
from schemas.requests import RunRequest

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MESSAGES: Final[dict[str, TypeAdapter[Any]]] = {
    "run_request": TypeAdapter(RunRequest),
    "run_reply": TypeAdapter(RunReply),
    "run_event": TypeAdapter(RunEvent),
    "cancel_request": TypeAdapter(CancelRequest),
    "dead_letter_headers": TypeAdapter(DeadLetterHeaders),
}
"""What crosses the broker, by the name of its file."""

_TARGETS: Final = ("team_id", "agent_id", "workflow_id")


def json_schemas() -> dict[str, Schema]:
    """Return the schema of each message by name; each is complete in itself."""
    return {name: _of_message(name, adapter) for name, adapter in MESSAGES.items()}


def definitions(ref_template: str) -> dict[str, Schema]:
    """Return the schemas of all models of messages by their names, with references of a form of one's own."""
    inputs = [(name, "validation", adapter) for name, adapter in MESSAGES.items()]
    _, together = TypeAdapter.json_schemas(inputs, ref_template=ref_template)  # type: ignore[arg-type]
    found: dict[str, Schema] = together["$defs"]
    for name, schema in found.items():
        _describe(name, schema)
    return found


def _of_message(name: str, adapter: TypeAdapter[Any]) -> Schema:
    schema = adapter.json_schema()
    _describe(schema.get("title", ""), schema)
    for defined, inner in schema.get("$defs", {}).items():
        _describe(defined, inner)
    return {"$schema": DIALECT, "$id": f"urn:teamturn:{name}"} | {"title": "RunEvent"} | schema


def _describe(model_name: str, schema: Schema) -> None:
    """Add what the model's docstrings say, and what its validators do."""
    model = _models().get(model_name)
    if model is None:
        return
    said = {model.model_fields[name].alias or name: text for name, text in _said(model)}
    required: list[str] = schema.setdefault("required", [])
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)  # the name once more
        if name in said:
            field.setdefault("description", said[name])
        if "const" in field and name not in required:
            required.append(name)  # what tells one message from another is always there
        if field.get("default") == "":
            del field["default"]  # the models' own way to say that the run_id stands in for it
    if model is RunRequest:
        required.remove("run_id")
        schema["oneOf"] = [{"required": [one], "properties": {one: {"type": "string"}}} for one in _TARGETS]


@cache
def _models() -> dict[str, type[BaseModel]]:
    return {one.__name__: one for one in _subclasses(BaseModel) if one.__module__.startswith("schemas.")}


def _subclasses(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in of.__subclasses__():
        yield one
        yield from _subclasses(one)


def _said(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a model with the docstrings behind them.

    pydantic can do it as each class is made; that would cost every start, and this is wanted seldom.
    """
    for one in reversed(model.__mro__):
        if not one.__module__.startswith("schemas."):
            continue
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        body = made.body if isinstance(made, ast.ClassDef) else []
        for field, behind in pairwise(body):
            match field, behind:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    if name in model.model_fields:
                        yield name, " ".join(text.split())
                case _:
                    pass
