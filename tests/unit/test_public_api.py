"""What users of the last release rely on is still there: names, parameters, commands, settings, and valid requests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import ErrorCode
from schemas.json_schema import json_schemas
from schemas.replies import RunReply
from tests.acceptance.stage import QUICKER
from tests.support.json_schemas import narrowings
from tests.support.releases import Release
from tests.support.workers import ROOT, environment_of, run_python
from worker.settings import Settings

Surface = dict[str, dict[str, Any]]
REMOVED: frozenset[str] = frozenset()
"""What was deprecated in the last release, said to go, and is gone: the only lines that may be missing."""


def broken(old: Surface, new: Surface) -> list[str]:
    """A line for each thing that was there and is not, or can't be used as it could."""
    found = []
    for name, before in old.items():
        after = new.get(name)
        if after is None:
            found.append(f"{name} is missing")
            continue
        gone = {*before.get("parameters", ())} - {*after.get("parameters", ())}
        asked = {*after.get("required", ())} - {*before.get("required", ())}
        found += [f"{name} has no {one}" for one in sorted(gone)]
        found += [f"{name} requires {one}" for one in sorted(asked)]
        positional = before.get("positional", [])
        if not gone and after.get("positional", [])[: len(positional)] != positional:
            found.append(f"{name} takes its arguments in another order")
    return found


async def _surface(settings: Settings, path: str) -> Surface:
    environment = environment_of(settings, **QUICKER | {"PYTHONPATH": path})
    program = str(ROOT / "tests" / "data" / "public_surface.py")
    code, out, error = await run_python(program, environment=environment, cwd=ROOT / "tests", seconds=60)
    assert code == 0, error
    found: Surface = json.loads(out)
    return found


async def test_what_the_last_release_offers_is_still_offered(last_release: Release) -> None:
    old = await _surface(Settings(), last_release.path)
    new = await _surface(Settings(), str(ROOT))
    assert {"Team", "RunClient.run", "Turn.step", "teamturn sessions list", "TEAMTURN_PREFIX"} <= old.keys()
    assert [line for line in broken(old, new) if line not in REMOVED] == []


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("gone", None),
        ("ask", {"parameters": ["text"], "positional": ["text"], "required": ["text"]}),
        ("ask", {"parameters": ["team", "text"], "positional": ["text"], "required": ["team", "text"]}),
        ("ask", {"parameters": ["team", "text", "to"], "positional": ["to", "text"], "required": ["text"]}),
    ],
    ids=["a name is gone", "a parameter is gone", "one must be given now", "another one comes first"],
)
def test_what_breaks_a_user_s_code_is_found(name: str, new: dict[str, Any] | None) -> None:
    old: Surface = {"ask": {"parameters": ["team", "text"], "positional": ["text"], "required": ["text"]}, "gone": {}}
    assert broken(old, old) == []
    assert (
        len(broken(old, {one: fields for one, fields in (old | {name: new or {}}).items() if new or one != name})) == 1
    )


@pytest.mark.parametrize("message", ["run_request", "cancel_request"])
def test_every_message_that_the_last_release_takes_is_taken(last_release: Release, message: str) -> None:
    assert narrowings(last_release.json_schema(message), json_schemas()[message]) == []


def unreadable(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each thing that a consumer of the old schema relies on and `new` messages have not, or otherwise.

    New fields, kinds of messages and values of an enumeration are none: consumers are told to expect them.
    """
    old, new = _without_enumerations(old), _without_enumerations(new)
    found = []
    for name, before in ({"$": old} | old["$defs"]).items():
        after = new if name == "$" else new["$defs"].get(name, {})
        gone = before.get("properties", {}).keys() - after.get("properties", {}).keys()
        found += [f"{name}.{field} is missing" for field in sorted(gone)]
        if "properties" in before:
            roots = ({"$defs": root["$defs"]} for root in (new, old))
            found += narrowings(*(one | root for one, root in zip((after, before), roots, strict=True)))
    return found


def _without_enumerations(schema: Any) -> Any:
    match schema:
        case dict():
            return {key: _without_enumerations(value) for key, value in schema.items() if key != "enum"}
        case list():
            return [_without_enumerations(item) for item in schema]
        case _:
            return schema


@pytest.mark.parametrize("message", ["run_reply", "run_event", "dead_letter_headers"])
def test_consumers_of_the_last_release_can_read_what_is_sent(last_release: Release, message: str) -> None:
    old = {"$defs": {}} | last_release.json_schema(message)
    assert unreadable(old, {"$defs": {}} | json_schemas()[message]) == []


def _change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(schema: dict[str, Any]) -> None:
        *parts, last = path.split("/")
        for part in parts:
            schema = schema[part]
        if value is ...:
            del schema[last]
        else:
            schema[last] = value

    return change


NARROWER: dict[str, Callable[[dict[str, Any]], None]] = {
    "a field is gone": _change("properties/stream", ...),
    "a field must be given": _change("required", ["user_id"]),
    "a value is gone": _change("$defs/OnBusy/enum", ["enqueue", "reject"]),
    "a type is another": _change("properties/stream/type", "string"),
    "null is none any more": _change("properties/user_id/anyOf", [{"type": "string"}]),
    "text must be shorter": _change("properties/run_id/maxLength", 36),
    "text must be longer": _change("properties/run_id/minLength", 36),
    "text must fit a pattern": _change("properties/run_id/pattern", "^[a-z]+$"),
    "fewer items": _change("properties/decisions/maxItems", 10),
    "a part of the input is gone": _change("$defs/TextPart/properties/type/const", "words"),
    "a field of a part must be given": _change("$defs/Decision/required", ["tool_call_id", "approved", "message"]),
    "an object has fixed fields": _change("properties/metadata/additionalProperties", False),  # noqa: FBT003
    "something unknown is asked for": _change("properties/metadata/maxProperties", 3),
}
WIDER: dict[str, Callable[[dict[str, Any]], None]] = {
    "nothing": lambda _: None,
    "a new field": _change("properties/priority", {"type": "integer"}),
    "a new value": _change("$defs/OnBusy/enum", ["enqueue", "reject", "interrupt", "coalesce", "drop"]),
    "longer text": _change("properties/run_id/maxLength", 1000),
    "any length": _change("properties/run_id/maxLength", ...),
    "more items": _change("properties/decisions/maxItems", ...),
    "one field less must be given": _change("$defs/Decision/required", ["tool_call_id"]),
    "anything": _change("properties/input", {}),
    "another description": _change("properties/input/description", "What is asked."),
}


@pytest.mark.parametrize("case", NARROWER)
def test_a_schema_that_takes_less_is_found(case: str) -> None:
    old = json_schemas()["run_request"]
    new = copy.deepcopy(old)
    NARROWER[case](new)
    assert narrowings(old, new)


@pytest.mark.parametrize(
    "change",
    [
        _change("properties/turn", ...),
        _change("properties/turn/anyOf", [{"type": "integer"}, {"type": "null"}, {"type": "string"}]),
        _change("$defs/RunMetrics/properties/duration/type", "string"),
        _change("$defs/MemberResponse/properties/content", ...),
    ],
    ids=["a field is gone", "a value may be text, too", "a type is another", "a part's field is gone"],
)
def test_a_reply_that_a_consumer_can_t_read_is_found(change: Callable[[dict[str, Any]], None]) -> None:
    old = json_schemas()["run_reply"]
    new = copy.deepcopy(old)
    change(new)
    assert unreadable(old, new)


@pytest.mark.parametrize("case", WIDER)
def test_a_schema_that_takes_more_is_let_be(case: str) -> None:
    old = json_schemas()["run_request"]
    new = copy.deepcopy(old)
    WIDER[case](new)
    assert narrowings(old, new) == []


def test_a_reply_with_a_code_and_fields_of_a_later_version_is_read() -> None:
    error = {"code": "of_the_future", "message": "it has not happened yet", "field": 1}
    ended = {"status": "ERROR", "error": error, "created_at": 1, "completed_at": 2, "field": {"of": "the future"}}
    body = json.dumps({"run_id": "r1", "session_id": "s1", "session_type": "team", "team_id": "t1"} | ended)
    reply = RunReply.model_validate_json(body)
    assert reply.error is not None
    assert (reply.error.code, reply.error.code.value) == ("of_the_future", "of_the_future")
    assert isinstance(reply.error.code, ErrorCode)
    assert reply.error.code not in list(ErrorCode)
    assert json.loads(reply.model_dump_json())["error"]["code"] == "of_the_future"
