"""Tracing: which headers name a trace, what is logged within one, and steps that are made once and traced once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context, trace
from pydantic_ai.messages import ModelResponse, ToolCallPart

from tests.support.spans import Spans, sdk
from tests.unit.books import Book
from tests.unit.models import responses, text
from worker.errors import LaneLost
from worker.operations import tracing
from worker.team.instrumentation import models_traced
from worker.team.team import Team

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    with sdk(monkeypatch) as spans:
        yield spans


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "hello"},
        {"traceparent": TRACEPARENT.upper()},
        {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
        {"traceparent": f"ff-{TRACE_ID}-{SPAN_ID}-01"},
        {"traceparent": f"{TRACEPARENT}-more"},
        {"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-{'x' * 500}"},
        {"traceparent": TRACEPARENT + "x" * 1_000_000},
        {"traceparent": 5},
        {"traceparent": None},
        {"traceparent": b"\xff\xfe"},
        {"traceparent": [TRACEPARENT]},
        {"traceparent": {"nested": TRACEPARENT}},
        {"Traceparent": TRACEPARENT},
        {"tracestate": "vendor=1"},
    ],
    ids=lambda headers: str(headers)[:60],
)
def test_headers_that_name_no_trace_as_they_should_are_as_good_as_none(
    headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing.context_of(headers) is None
    assert not caplog.records  # anybody can send such a header, any number of times


@pytest.mark.parametrize(
    "tracestate",
    ["x" * 513, "=", 7, b"\xff", ",".join(f"k{number}=v" for number in range(33))],
    ids=lambda tracestate: str(tracestate)[:20],
)
def test_a_wrong_tracestate_is_dropped_and_the_trace_is_kept(tracestate: Any) -> None:
    found = tracing.context_of({"traceparent": TRACEPARENT, "tracestate": tracestate})
    sent: dict[str, Any] = {}
    token = context.attach(found or context.Context())
    try:
        with tracing.sending(sent, exchange="", routing_key="q"):
            pass
    finally:
        context.detach(token)
    assert sent == {"traceparent": TRACEPARENT}


def test_what_is_logged_within_a_trace_says_which(spans: Spans) -> None:
    assert tracing.with_trace(None, "info", {"event": "before"}) == {"event": "before"}
    with spans.provider.get_tracer("test").start_as_current_span("turn") as span:
        logged = tracing.with_trace(None, "info", {"event": "within"})
    told = span.get_span_context()
    assert logged == {
        "event": "within",
        "trace_id": trace.format_trace_id(told.trace_id),
        "span_id": trace.format_span_id(told.span_id),
    }


async def test_a_resumed_turn_traces_only_what_it_does_itself(spans: Spans) -> None:
    async def look_up(what: str) -> str:
        return f"{what} found"

    asks = ModelResponse(parts=[ToolCallPart("look_up", {"what": "tea"}, tool_call_id="c1")])
    team = Team("t1", responses(asks, text("done")).model, tools=[look_up])
    book = Book(dies_at=4)  # a request, the start of the tool's call and its end, and then the second request
    opened = spans.provider.get_tracer("test").start_as_current_span
    with models_traced(content=False):
        with opened("first"), pytest.raises(LaneLost):
            await book.attempt(team)
        with opened("second"):
            outcome = await book.attempt(team)
    assert outcome.content == "done"
    names = spans.names
    second = names[names.index("first") + 1 :]
    assert [name for name in second if name.startswith(("chat", "execute_tool", "step"))] == [
        "step model.request",
        "chat told",
    ]
