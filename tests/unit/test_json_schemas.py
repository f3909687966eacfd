"""schemas/json: current, JSON Schema 2020-12, of one mind with the models, and shipped."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import ValidationError

from schemas.dead_letters import DeadLetterHeaders
from schemas.events import RUN_EVENT, RunFinished
from schemas.json_schema import MESSAGES, json_schemas
from schemas.replies import RunReply, RunStatus
from tests.support.workers import ROOT
from worker.intake import delivery, forwarding

FILES = resources.files("schemas") / "json"
REPLY = RunReply(
    run_id="r1",
    session_id="s1",
    session_type="team",
    team_id="t",
    status=RunStatus.COMPLETED,
    content={"a": [1, None]},
    created_at=1,
    completed_at=2,
)
EVENT = {
    "run_id": "r1",
    "session_id": "s1",
    "session_type": "team",
    "target_id": "t",
    "attempt": 1,
    "number": 1,
    "time": 1,
}


def file_of(name: str) -> Any:
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))


def test_each_message_has_a_file_and_each_file_is_current() -> None:
    assert {file.name for file in FILES.iterdir()} == {f"{name}.json" for name in MESSAGES}
    for name, schema in json_schemas().items():
        assert file_of(name) == schema, "run .venv/bin/python deploy/reference.py"


@pytest.mark.parametrize("name", MESSAGES)
def test_each_is_json_schema_2020_12_and_describes_every_field(name: str) -> None:
    schema = file_of(name)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)
    models = [schema, *schema.get("$defs", {}).values()]
    bare = [
        (one["title"], field)
        for one in models
        for field, said in one.get("properties", {}).items()
        if "description" not in said and field != "type"
    ]
    assert not bare


REQUEST = {"run_id": "r1", "team_id": "t", "input": "hello"}
CONTINUES = {"run_id": "r2", "team_id": "t", "continues": "r1"}
PART = {"type": "binary", "media_type": "image/png", "data": "AAAA"}


@pytest.mark.parametrize(
    ("name", "message", "valid"),
    [
        ("run_request", REQUEST, True),
        ("run_request", REQUEST | {"input": [{"type": "text", "text": "?"}, PART]}, True),
        ("run_request", REQUEST | {"agent_id": None, "user_id": None, "stream": True, "on_busy": "reject"}, True),
        ("run_request", REQUEST | {"session_state": {"a": [1]}, "deadline": "2030-01-31T12:00:00Z"}, True),
        ("run_request", REQUEST | {"agent_id": "a"}, False),
        ("run_request", {"run_id": "r1", "input": "hello"}, False),
        ("run_request", REQUEST | {"team_id": None}, False),
        ("run_request", REQUEST | {"unknown": 1}, False),
        ("run_request", REQUEST | {"run_id": ""}, False),
        ("run_request", REQUEST | {"run_id": 5}, False),
        ("run_request", REQUEST | {"input": []}, False),
        ("run_request", REQUEST | {"input": [{"type": "image"}]}, False),
        ("run_request", REQUEST | {"input": [PART | {"media_type": "png"}]}, False),
        ("run_request", REQUEST | {"stream": "yes"}, False),
        ("run_request", REQUEST | {"on_busy": "wait"}, False),
        ("run_request", REQUEST | {"metadata": []}, False),
        ("run_request", CONTINUES | {"decisions": [{"tool_call_id": "c", "approved": True}]}, True),
        ("run_request", CONTINUES, False),
        ("cancel_request", {"type": "cancel", "run_id": "r1"}, True),
        ("cancel_request", {"type": "cancel", "run_id": "r1", "session_id": "s", "user_id": None}, True),
        ("cancel_request", {"type": "pause", "run_id": "r1"}, False),
        ("cancel_request", {"type": "cancel"}, False),
        ("run_reply", REPLY.model_dump(mode="json"), True),
        ("run_reply", REPLY.model_dump(mode="json") | {"added": "later"}, True),
        ("run_reply", REPLY.model_dump(mode="json") | {"status": "DONE"}, False),
        ("run_event", EVENT | {"type": "run_started"}, True),
        ("run_event", EVENT | {"type": "content_delta", "text": "a"}, True),
        ("run_event", EVENT | {"type": "content_delta"}, False),
        ("run_event", EVENT | {"type": "unknown"}, False),
        ("run_event", EVENT, False),
    ],
)
def test_schema_and_model_are_of_one_mind(name: str, message: dict[str, Any], *, valid: bool) -> None:
    try:
        MESSAGES[name].validate_json(json.dumps(message))
    except ValidationError:
        by_model = False
    else:
        by_model = True
    assert (Draft202012Validator(file_of(name)).is_valid(message), by_model) == (valid, valid)


def test_a_request_may_be_named_by_its_message_id_alone() -> None:
    assert Draft202012Validator(file_of("run_request")).is_valid({"team_id": "t", "input": "hello"})


def test_a_whole_event_and_its_reply_are_valid_as_they_are_published() -> None:
    event = RunFinished.model_validate(EVENT | {"reply": REPLY})
    published = json.loads(RUN_EVENT.dump_json(event))
    Draft202012Validator(file_of("run_event")).validate(published)
    Draft202012Validator(file_of("run_reply")).validate(published["reply"])


def test_the_headers_of_dead_letters_are_those_that_workers_set() -> None:
    set_by_workers = {value for name, value in vars(forwarding).items() if name.endswith("_HEADER")}
    described = {field.alias for field in DeadLetterHeaders.model_fields.values()}
    assert described == set_by_workers | {delivery.WITHOUT_MESSAGE_ID}


def test_they_are_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"schemas/json/{name}.json" for name in MESSAGES} <= set(archive.namelist())
