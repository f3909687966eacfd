"""An SDK of OpenTelemetry for tests, and its spans as they were ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from tests.support.waiting import eventually
from worker.operations import tracing


class Spans:
    """The spans that ended since."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def ended(self) -> list[ReadableSpan]:
        """In the order of their ends."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.ended]

    async def one(self, name: str) -> ReadableSpan:
        """Wait for the one span whose name begins so."""
        await eventually(lambda: any(one.name.startswith(name) for one in self.ended))
        (found,) = [one for one in self.ended if one.name.startswith(name)]
        return found

    def text(self) -> str:
        """All that they say, for looking for what they must not."""
        return "\n".join(one.to_json() for one in self.ended)


@contextmanager
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Have the process be one that was started with an SDK, for the block: the API itself lets one be set once."""
    spans = Spans()
    with monkeypatch.context() as patched:
        patched.setattr(trace, "_TRACER_PROVIDER", spans.provider)
        patched.setattr(tracing, "_tracer", spans.provider.get_tracer("teamturn"))
        yield spans
    spans.provider.shutdown()


def trace_of(span: ReadableSpan) -> tuple[str, str]:
    """Its trace's id and its own, as in a traceparent."""
    context = span.get_span_context()
    assert context is not None
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def parent_of(span: ReadableSpan) -> str | None:
    """The id of its parent."""
    return None if span.parent is None else trace.format_span_id(span.parent.span_id)
