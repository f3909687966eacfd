"""The AsyncAPI document: valid by AsyncAPI's own schema, and of one mind with what workers declare and send."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from schemas.asyncapi import Broker, asyncapi
from schemas.events import EVENT_TYPE, RUN_EVENT
from tests.support.workers import ROOT
from worker.cli.yaml import yaml_of
from worker.intake.topology import Topology

DOCUMENT = asyncapi("chat.eu", version="1.2.3", broker=Broker(host="broker:5671", vhost="app", secure=True))
NAMES = Topology(prefix="chat.eu", partitions=2)


@pytest.fixture(scope="module")
def official() -> Any:
    """AsyncAPI's own schema: schemas/3.0.0-without-$id.json of the npm package @asyncapi/specs 6.11.1 (Apache-2.0)."""
    with gzip.open(ROOT / "tests" / "data" / "asyncapi-3.0.0.json.gz") as file:
        return Draft7Validator(json.load(file))


def test_the_document_is_valid_by_asyncapi_s_own_schema(official: Any) -> None:
    assert best_match(official.iter_errors(DOCUMENT)) is None
    assert best_match(official.iter_errors(asyncapi("teamturn", version="1"))) is None


@pytest.mark.parametrize(
    "mistake",
    [
        {"asyncapi": "2.6.0"},
        {"channels": {"requests": {"adress": "{slot}"}}},
        {"operations": {"receiveRequest": {"action": "take", "channel": {"$ref": "#/channels/requests"}}}},
        {"components": {"schemas": {"RunRequest": {"type": "no type"}}}},
    ],
)
def test_that_schema_finds_mistakes(official: Any, mistake: dict[str, Any]) -> None:
    assert not official.is_valid(DOCUMENT | mistake)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_whatever_it_refers_to_is_there() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, reference
            place = place[step]


def test_exchanges_and_queues_are_those_that_workers_declare() -> None:
    bindings = [channel["bindings"]["amqp"] for channel in DOCUMENT["channels"].values() if "bindings" in channel]
    exchanges = {one["exchange"]["name"]: one["exchange"]["type"] for one in bindings if "exchange" in one}
    declared = {one.name: one.type.value for one in NAMES.exchanges()}
    assert exchanges.items() <= declared.items()
    assert exchanges.keys() == {NAMES.requests, NAMES.events, NAMES.control}
    queues = {one["queue"]["name"] for one in bindings if "queue" in one}
    assert queues == {NAMES.results, NAMES.dead}
    assert queues <= {one.name for one in NAMES.queues()}
    assert all((one.get("exchange") or one["queue"])["vhost"] == "app" for one in bindings)


def test_there_is_a_message_for_each_kind_of_event_that_can_be_read() -> None:
    fields = [schema.get("properties", {}).get("type", {}) for schema in RUN_EVENT.json_schema()["$defs"].values()]
    kinds = {one["const"] for one in fields if "const" in one}
    told = [DOCUMENT["components"]["messages"][name] for name in DOCUMENT["channels"]["events"]["messages"]]
    schemas = DOCUMENT["components"]["schemas"]
    assert {schemas[one["name"]]["properties"]["type"]["const"] for one in told} == kinds
    assert {one["bindings"]["amqp"]["messageType"] for one in told} == {EVENT_TYPE}


def test_the_example_of_a_request_is_one() -> None:
    components = DOCUMENT["components"]
    (shown,) = components["messages"]["runRequest"]["examples"]
    validator = Draft7Validator(components["schemas"]["RunRequest"] | {"components": components})
    validator.validate(shown["payload"])
    assert not validator.is_valid(shown["payload"] | {"agent_id": "another"})


def test_it_has_the_broker_s_address_and_no_password() -> None:
    server = DOCUMENT["servers"]["rabbitmq"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("amqps", "broker:5671", "/app")


TEXTS = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" \n"))
KEYS = st.text("abz:#- 0{}'\"", max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
@example({"a": "two\n\nlines", "b": [["x"], {"c": []}], "on": "no", "d": "- a", "e": "a: b # c", "f": "1.5", "g": "~"})
def test_yaml_says_what_json_does(value: Any) -> None:
    assert yaml.safe_load(yaml_of(value)) == value


def test_the_document_in_yaml_is_the_same() -> None:
    assert yaml.safe_load(yaml_of(DOCUMENT)) == DOCUMENT
