"""Tracing, by OpenTelemetry's API: whoever starts the process sets up an SDK, or none.

A trace comes with a request and leaves with its reply, as W3C Trace Context in the headers `traceparent` and
`tracestate`. Other formats and baggage are neither read nor sent: what a stranger's message says goes no further.
Without an SDK there are no spans, and a trace is passed on as it came.

Names and attributes are those of OpenTelemetry's semantic conventions for messaging (1.30 and later) and for generative
AI, and `teamturn.*` for what these have no word for. A span that is opened here has nothing of a conversation: no text
of a message, a state or an error, only codes and the types of exceptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | bool | int | float]

ERROR_TYPE: Final = "error.type"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_LONGEST_HEADER_CHARACTERS: Final = 512
"""What a tracestate may have at most (W3C Trace Context, 3.3.1.5); a traceparent has 55."""

_SERVER_NAMED: Final = "amq."

_propagator: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("teamturn")
NOT_TRACED: Final = nullcontext(trace.INVALID_SPAN)
"""What stands for the span of a block that has none."""


def installed() -> bool:
    """Whether there is an SDK, so that spans go anywhere."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider | NoOpTracerProvider)


def recording() -> bool:
    """Whether the running code is in a span that is recorded."""
    return trace.get_current_span().is_recording()


def span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """Open a span within the one that the running code is in, for the block; none, if that is not recorded."""
    if not recording():
        return NOT_TRACED
    return _opened(_tracer.start_span(name, attributes=attributes))


class Stretch:
    """A span that ends within a block that it does not have the end of: a wait, say."""

    def __init__(self, name: str, *, since: float | None = None) -> None:
        """Begin: now, or at a time in unix seconds."""
        self._name = name
        self._begun: int | None = time.time_ns() if since is None else int(since * 1e9)

    def begin(self) -> None:
        """Begin again, if it has ended."""
        self._begun = self._begun or time.time_ns()

    def end(self, attributes: Attributes | None = None) -> None:
        """End. Nothing is told where nothing is recorded."""
        if recording():
            _tracer.start_span(self._name, start_time=self._begun, attributes=attributes).end()
        self._begun = None


def note(attributes: Attributes) -> None:
    """Add to the span that the running code is in."""
    trace.get_current_span().set_attributes(attributes)


def failed(error_type: str, told: Span | None = None) -> None:
    """Say that a span, or that which the running code is in, has failed; the type is a code, or a class's name."""
    told = told or trace.get_current_span()
    told.set_attribute(ERROR_TYPE, error_type)
    told.set_status(Status(StatusCode.ERROR, error_type))


def processing(
    headers: Mapping[str, Any],
    *,
    queue: str,
    exchange: str | None,
    routing_key: str | None,
    received: float,
    attributes: Callable[[], Attributes],
) -> AbstractContextManager[Span]:
    """Open the span of a message's processing for the block, within the trace that its headers name.

    `received` is when it came, in unix seconds: there the span begins. Headers that name no trace as they should are
    as good as none.
    """
    parent = context_of(headers)
    if not installed():
        return NOT_TRACED if parent is None else _within(parent)
    own = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": _destination(exchange, routing_key, queue),
        "messaging.destination.template": queue,
        **({"messaging.rabbitmq.destination.routing_key": routing_key} if routing_key else {}),
    }
    started = _tracer.start_span(
        f"process {queue}",
        # Not within whatever span was around when the worker was started.
        context=Context() if parent is None else parent,
        kind=SpanKind.CONSUMER,
        attributes=own | {name: value for name, value in attributes().items() if value != ""},
        start_time=int(received * 1e9),
    )
    return _opened(started)


def sending(
    headers: MutableMapping[str, Any],
    *,
    exchange: str,
    routing_key: str,
    message_id: str | None = None,
    body_bytes: int = 0,
) -> AbstractContextManager[Span]:
    """Open the span of a message's publishing for the block, and put the trace into its headers.

    Where the running code is in no trace, none is begun for it.
    """
    if not trace.get_current_span().get_span_context().is_valid:
        return NOT_TRACED
    if not installed():
        _propagator.inject(headers)
        return NOT_TRACED
    temporary = not exchange and routing_key.startswith(_SERVER_NAMED)
    attributes: dict[str, str | bool | int | float] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": _destination(exchange, routing_key),
        "messaging.message.body.size": body_bytes,
    }
    if exchange:
        attributes["messaging.destination.template"] = exchange
    if temporary:
        attributes |= {"messaging.destination.temporary": True, "messaging.destination.anonymous": True}
    if routing_key:
        attributes["messaging.rabbitmq.destination.routing_key"] = routing_key
    if message_id:
        attributes["messaging.message.id"] = message_id
    # Queues that producers name may be many: they are no part of a span's name.
    started = _tracer.start_span(f"send {exchange}".strip(), kind=SpanKind.PRODUCER, attributes=attributes)
    _propagator.inject(headers, trace.set_span_in_context(started))
    return _opened(started)


def context_of(headers: Mapping[str, Any]) -> Context | None:
    """Return the trace that a message's headers name; None if they name none, or not as they should."""
    if TRACEPARENT not in headers:
        return None
    sane = {name: value for name in (TRACEPARENT, TRACESTATE) if _is_sane(value := headers.get(name))}
    found = _propagator.extract(sane, Context())
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def with_trace(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add to a logged event which trace and span it belongs to, if it does; a processor of structlog."""
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        event["trace_id"] = trace.format_trace_id(current.trace_id)
        event["span_id"] = trace.format_span_id(current.span_id)
    return event


def _is_sane(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_HEADER_CHARACTERS


def _destination(*parts: str | None) -> str:
    """Return the exchange, routing key and queue as one name: each that there is, and an equal one once."""
    return ":".join(dict.fromkeys(part for part in parts if part)) or "amq.default"


@contextmanager
def _within(parent: Context) -> Iterator[Span]:
    token = contexts.attach(parent)
    try:
        yield trace.INVALID_SPAN
    finally:
        contexts.detach(token)


@contextmanager
def _opened(started: Span) -> Iterator[Span]:
    """Have a span be the current one for the block, and end with it. Of what is raised, only its type is told."""
    with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield started
        except BaseException as error:
            failed(type(error).__name__, started)
            raise
