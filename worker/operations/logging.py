"""Logs: structlog, one event a line; JSON when standard error is not a terminal.

A turn binds run_id, session_id and attempt once, as context variables of its task. Libraries' own records
(aio-pika, asyncpg, pydantic-ai) go through the same renderer. Secrets are cut out of the rendered line, wherever
in it they stand: an exception's text is somebody else's.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog
from structlog.typing import Processor

from worker.settings import ENV_PREFIX

_SECRET_VARIABLE: Final = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST_SECRET: Final = 6
"""Shorter ones would cut holes into ordinary words; RabbitMQ's `guest` is no secret."""


def secrets_in(environment: Mapping[str, str]) -> frozenset[str]:
    """Return what must never be seen: passwords in TEAMTURN_*_URL, and every *_KEY, *_TOKEN, *_SECRET, *_PASSWORD."""
    found = {value for name, value in environment.items() if _SECRET_VARIABLE.search(name)}
    for name, value in environment.items():
        if name.startswith(ENV_PREFIX) and name.endswith("_URL"):
            found |= _passwords_in(value)
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def _passwords_in(url: str) -> set[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return set()
    return {password, unquote(password)} if password else set()


class Redaction:
    """Cuts known secrets out of text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first: one secret may be the beginning of another.
        ordered = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """Return the text with each secret replaced by ***."""
        return self._pattern.sub("***", text) if self._pattern else text


def configure_logging(*, level: int = logging.INFO) -> None:
    """Send structlog's events and the standard library's records to standard error."""
    redact = Redaction(secrets_in(os.environ))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Processor]
    if sys.stderr.isatty():
        renderers = [structlog.dev.ConsoleRenderer()]
    else:
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]

    def redacted(_logger: object, _name: str, rendered: object) -> str:
        return redact(str(rendered))

    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers, redacted],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Each lost connection is told by us, once and with what follows from it.
    for name in ("aio_pika", "aiormq", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.CRITICAL if name.startswith("aio") else logging.WARNING)
