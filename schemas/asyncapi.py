"""The AsyncAPI 3.0 document of a prefix: what the workers receive and send, for people and for generators of clients.

It describes the workers, as AsyncAPI has it of an application: what they `receive`, a producer sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, get_args

from schemas.events import EVENT_TYPE, RunEvent
from schemas.ids import SessionType
from schemas.json_schema import Schema, definitions
from schemas.replies import REPLY_TYPE

Json = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
_MESSAGES: Final = "#/components/messages/"
_BINDING: Final = {"bindingVersion": "0.3.0"}
"""Of AsyncAPI's AMQP bindings; for AMQP 0-9-1."""
_PERSISTENT: Final = 2
_TRANSIENT: Final = 1

_ABOUT: Final = """\
Workers that take turns of LLM teams: run requests come in by RabbitMQ, sessions are kept in Postgres, and each request
gets one reply. This document describes the workers: what they receive, a producer sends.

Publish requests persistent, with publisher confirms and `mandatory`. Neither `expiration` nor a priority above 0 may be
set. The same `run_id` with the same content gets the same reply, byte for byte, and is not executed again: after a lost
connection publish the request again.\
"""
_SLOT: Final = """\
The first two hex digits, lower case, of the md5 of the session_id in UTF-8; without a session_id, of the run_id. Any
other key costs one more hop.\
"""
_KEY_PART: Final = """\
An id of up to 60 ASCII letters, digits, `_` and `-` is itself; of any other one it is the first 32 hex digits of its
SHA-256.\
"""


@dataclass(frozen=True)
class Broker:
    """Where RabbitMQ is, as far as a document may say: no user, no password."""

    host: str = "localhost:5672"
    """With its port."""
    vhost: str = "/"
    secure: bool = False
    """Whether it is spoken to by TLS."""


def asyncapi(prefix: str, *, version: str, broker: Broker | None = None) -> Json:
    """Return the document of the workers of a prefix, in a version of teamturn."""
    broker = broker or Broker()
    events = [_event_name(one) for one in _event_models()]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"teamturn: {prefix}",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": _server(broker)},
        "channels": _channels(prefix, broker.vhost, events),
        "operations": _operations(events),
        "components": {
            "schemas": {name: _as_draft_7(schema) for name, schema in _schemas().items()},
            "messages": _messages(),
            "securitySchemes": {"userPassword": {"type": "userPassword", "description": "A user of RabbitMQ."}},
        },
    }


def _server(broker: Broker) -> Json:
    return {
        "host": broker.host,
        "pathname": broker.vhost if broker.vhost.startswith("/") else f"/{broker.vhost}",
        "protocol": "amqps" if broker.secure else "amqp",
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ 3.10 or newer.",
        "security": [{"$ref": "#/components/securitySchemes/userPassword"}],
    }


# Channels.


def _channels(prefix: str, vhost: str, events: list[str]) -> Json:
    return {
        "requests": {
            "address": "{slot}",
            "title": "Run requests",
            "description": "Requests of a session are executed one after the other, in the order of their publishing.",
            "parameters": {"slot": {"description": _SLOT, "examples": ["00", "a7", "ff"]}},
            "messages": _referred(["runRequest"]),
            "bindings": _exchange(f"{prefix}.requests", "direct", vhost),
        },
        "replies": {
            "address": None,
            "title": "Replies to who asked",
            "description": (
                "The queue that a request names as its reply_to: `amq.rabbitmq.reply-to`, a queue that RabbitMQ named "
                "(amq.gen-…), or what TEAMTURN_REPLY_TO_PATTERN allows. A reply that can't be routed there goes to the "
                "results."
            ),
            "messages": _referred(["runReply"]),
        },
        "results": {
            "address": f"{prefix}.results",
            "title": "Replies to requests without a reply_to",
            "description": (
                f"A quorum queue, bound to all keys of the topic exchange `{prefix}.results`. A queue of one's own can "
                "be bound there by `team.<id>`, `agent.<id>` or `workflow.<id>`. Acknowledge what is read: what is "
                "not read fills the broker's disk."
            ),
            "messages": _referred(["runReply"]),
            "bindings": _queue(f"{prefix}.results", vhost),
        },
        "events": {
            "address": "{kind}.{target}.{session}.{run}",
            "title": "Events of runs that are watched",
            "description": (
                "Bind a queue of your own: a run is `*.*.*.<run>`, a session `*.*.<session>.*`, a team "
                "`team.<id>.*.*`, and everything `#`. Events are kept by nobody; the reply comes as ever."
            ),
            "parameters": {
                "kind": {"description": "What kind of target the run has.", "enum": [one.value for one in SessionType]},
                "target": {"description": f"The team, agent or workflow. {_KEY_PART}"},
                "session": {"description": f"The session_id. {_KEY_PART}"},
                "run": {"description": f"The run_id. {_KEY_PART}"},
            },
            "messages": _referred(events),
            "bindings": _exchange(f"{prefix}.events", "topic", vhost),
        },
        "control": {
            "address": "cancel",
            "title": "What is said about runs, apart from their requests",
            "description": "A fanout exchange: any routing key will do.",
            "messages": _referred(["cancelRequest"]),
            "bindings": _exchange(f"{prefix}.control", "fanout", vhost),
        },
        "deadLetters": {
            "address": f"{prefix}.dead",
            "title": "What could not be executed",
            "description": "`teamturn dead` lists, shows, replays and drops it.",
            "messages": _referred(["deadLetter"]),
            "bindings": _queue(f"{prefix}.dead", vhost),
        },
    }


def _referred(messages: list[str]) -> Json:
    return {name: {"$ref": f"{_MESSAGES}{name}"} for name in messages}


def _exchange(name: str, kind: str, vhost: str) -> Json:
    exchange = {"name": name, "type": kind, "durable": True, "autoDelete": False, "vhost": vhost}
    return {"amqp": {"is": "routingKey", "exchange": exchange} | _BINDING}


def _queue(name: str, vhost: str) -> Json:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": vhost}
    return {"amqp": {"is": "queue", "queue": queue} | _BINDING}


# Operations.


def _operations(events: list[str]) -> Json:
    published = {"deliveryMode": _PERSISTENT, "mandatory": True}
    reply = {
        "address": {"location": "$message.header#/reply_to", "description": "The AMQP property reply_to."},
        "channel": {"$ref": "#/channels/replies"},
        "messages": [{"$ref": "#/channels/replies/messages/runReply"}],
    }
    return {
        "receiveRequest": _operation("receive", "requests", ["runRequest"], "Take a turn.", published | {"ack": True})
        | {"reply": reply},
        "sendResult": _operation("send", "results", ["runReply"], "Reply to who named no reply_to.", published),
        "sendEvent": _operation(
            "send", "events", events, "Tell what happens in a watched run.", {"deliveryMode": _TRANSIENT}
        ),
        "receiveCancel": _operation(
            "receive", "control", ["cancelRequest"], "Cancel a run.", published | {"ack": True}
        ),
        "sendDeadLetter": _operation(
            "send", "deadLetters", ["deadLetter"], "Put aside what can't be executed.", published
        ),
    }


def _operation(action: str, channel: str, messages: list[str], summary: str, amqp: Json) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
        "bindings": {"amqp": amqp | _BINDING},
    }


# Messages.


def _messages() -> Json:
    correlation = {
        "location": "$message.header#/correlation_id",
        "description": "The AMQP property correlation_id; the reply has the request's, or else the run_id.",
    }
    request = {"run_id": "0b8d5b9c-6f26-4013-9bbc-9b5090d821e6", "session_id": "chat-1", "team_id": "capital"}
    return {
        "runRequest": _message("RunRequest", "A request to take a turn")
        | {
            "correlationId": correlation,
            "headers": {"type": "object", "properties": _trace_context("The trace that the request is part of")},
            "examples": [{"name": "question", "payload": request | {"input": "What is the capital of France?"}}],
        },
        "runReply": _message("RunReply", "The reply to a request", type_=REPLY_TYPE)
        | {
            "correlationId": correlation,
            "headers": {"type": "object", "properties": _trace_context("The trace of the request that it answers")},
        },
        **{_event_name(one): _message(one.__name__, one.__doc__ or "", type_=EVENT_TYPE) for one in _event_models()},
        "cancelRequest": _message("CancelRequest", "That a run is not wanted any more"),
        "deadLetter": {
            "name": "DeadLetter",
            "title": "A message as it came, with headers that say why it is here",
            "headers": {"$ref": f"{_SCHEMAS}DeadLetterHeaders"},
            "payload": {"description": "Whatever was sent."},
        },
    }


def _trace_context(whose: str) -> Json:
    return {
        "traceparent": {"type": "string", "description": f"{whose} (W3C Trace Context). One that is wrong is ignored."},
        "tracestate": {"type": "string", "description": "What tracing systems add to it."},
    }


def _message(model: str, title: str, *, type_: str | None = None) -> Json:
    amqp = {"contentEncoding": "utf-8"} | ({"messageType": type_} if type_ else {})
    return {
        "name": model,
        "title": title.partition("\n")[0].rstrip("."),
        "contentType": "application/json",
        "payload": {"$ref": f"{_SCHEMAS}{model}"},
        "bindings": {"amqp": amqp | _BINDING},
    }


def _event_models() -> tuple[Any, ...]:
    """Return each kind of event."""
    union, *_ = get_args(RunEvent)
    return get_args(union)


def _event_name(model: type) -> str:
    return f"{model.__name__[0].lower()}{model.__name__[1:]}"


# Schemas.


def _schemas() -> dict[str, Schema]:
    return definitions(f"{_SCHEMAS}{{model}}")


def _as_draft_7(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a schema as AsyncAPI has it: what stands beside a reference counts, and a discriminator is a name."""
    if isinstance(schema, list):
        return [_as_draft_7(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_draft_7(value) for key, value in schema.items()}
    if isinstance(found := made.get("discriminator"), dict) and "propertyName" in found:
        made["discriminator"] = found["propertyName"]
    if "$ref" in made and len(made) > 1:
        made["allOf"] = [{"$ref": made.pop("$ref")}]
    return made
