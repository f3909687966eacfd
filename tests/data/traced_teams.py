"""A module of teams that sets up an SDK of OpenTelemetry itself, and has its spans in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from teamturn import Turn, executor

_spans = Path(os.environ["TEST_SPANS"]).open("w")  # noqa: SIM115 - as long as the process
_provider = TracerProvider()
_provider.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(out=_spans, formatter=lambda one: f"{one.name}\n"))
)
trace.set_tracer_provider(_provider)


@executor("echo")
async def echo(turn: Turn) -> Any:
    return turn.input
