"""Logs: structlog, one event a line; JSON when standard error is not a terminal.

A turn binds run_id, session_id and attempt once, as context variables of its task; what is logged within a trace has
its trace_id and span_id. Libraries' own records
(aio-pika, asyncpg, pydantic-ai) go through the same renderer. Secrets are cut out of the rendered line, wherever
in it they stand: an exception's text is somebody else's.

What is said in conversations is in no line, unless TEAMTURN_LOG_CONTENT asks for it: the text of an exception is left
out, since it may quote it, and libraries tell nothing below info, since they print what they send.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, TextIO
from urllib.parse import unquote, unquote_plus

import structlog
from structlog.typing import EventDict, Processor
from typing_extensions import override

from worker.operations.tracebacks import traceback_without_texts
from worker.operations.tracing import with_trace

_SECRET_NAME: Final = re.compile(
    r"(key|token|secret|password|passwd|passphrase|authorization"
    # The ends of ordinary words too, such as "compat", and PWD is the working directory.
    r"|[_-](pass|pat|pwd|credentials?|sig|signature|auth))$",
    re.IGNORECASE,
)
_ADDRESS_NAME: Final = re.compile(r"_(URL|URI|DSN)$", re.IGNORECASE)
# By patterns, and not by a parser: a URL that is wrong has secrets too.
_USER_S_PASSWORD: Final = re.compile(r"//[^/?#:]*:([^/?#]*)@")
_URL_PARAMETER: Final = re.compile(r"[?&#]([^=&#]+)=([^&#]+)")
_DSN_PARAMETER: Final = re.compile(r"(?:^|[\s;])(\w+)\s*=\s*('[^']*'|[^\s;]+)")
"""Of "host=h password='p'" or "Server=h;Pwd=p"."""
_LONGEST_TEXT: Final = 16_384
"""Characters of one text in a line: an exception can quote whatever a model or a tool was sent."""
_LONGEST_CREDENTIAL: Final = 4_096
"""Characters that a credential is looked for in, where a text is cut before it is looked through."""
_CREDENTIALS: Final = re.compile(
    # What is one by what stands before it, wherever it came from: a header, a parameter, an address.
    r"(?P<before>\bauthorization\b\W{1,6}(?:(?:bearer|basic|token)\s+)?|\bbearer\s+"
    r"|\b(?:x-)?api[-_]?key\b\W{1,6}|://[^/?#:@\s]*:(?=[^/?#@\s]+@))"
    r"(?P<secret>[^\s'\"\\,;&}\])@]{6,})",
    re.IGNORECASE,
)
_NAMES_OF_FILES: Final = frozenset({"sslkey"})
"""Of Postgres's: called a key, it says where one is."""
_SHORTEST_SECRET: Final = 6
"""Shorter ones would cut holes into ordinary words; RabbitMQ's `guest` is no secret."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, but for those of a traceback's layout."""

_log = structlog.get_logger()


def secrets_in(environment: Mapping[str, str]) -> frozenset[str]:
    """Return what must never be seen: what is called a secret, as a variable, or within one that holds an address.

    A name ends in key, token, secret, password, passwd, passphrase or authorization, or in _pass, _pat, _pwd,
    _credential(s), _sig, _signature or _auth. Of a *_URL, *_URI or *_DSN it is the user's password, and each parameter
    of such a name. Upper or lower case.
    """
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for name, value in environment.items():
        if _ADDRESS_NAME.search(name):
            found |= _secrets_of(value)
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def _secrets_of(address: str) -> set[str]:
    parameters = [*_URL_PARAMETER.findall(address), *_DSN_PARAMETER.findall(address)]
    found = _USER_S_PASSWORD.findall(address)
    # As if each name had a part before it: here, unlike in the environment, "pwd" by itself is a password.
    for name, value in parameters:
        if _SECRET_NAME.search(f"_{name}") and name not in _NAMES_OF_FILES:
            found.append(value.strip("'"))
    return {form for secret in found for form in (secret, unquote(secret), unquote_plus(secret))}


class Redaction:
    """Cuts secrets out of text: those that are known, and what a credential's name or scheme stands before."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first: one secret may be the beginning of another.
        ordered = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._longest = max([_LONGEST_CREDENTIAL, *map(len, ordered)])

    def __call__(self, text: str) -> str:
        """Return the text with each secret replaced by ***."""
        known = self._pattern.sub("***", text) if self._pattern else text
        return _CREDENTIALS.sub(lambda found: f"{found['before']}***", known)

    def all_in(self, value: Any) -> Any:  # noqa: ANN401 - whatever was logged
        """Return a logged value with the secrets cut out of every text in it."""
        match value:
            case str():
                return self._of_a_line(value)
            case dict():
                return {key: self.all_in(item) for key, item in value.items()}
            case list() | tuple():
                return [self.all_in(item) for item in value]
            case bool() | int() | float() | None:
                return value
            case _:
                return self._of_a_line(str(value))

    def _of_a_line(self, text: str) -> str:
        """Return a text as a line has it: of one that is too long its beginning and its end; of a traceback, both tell.

        Only about as much is looked through: one of 16 MB would keep the event loop for two seconds.
        """
        left_out, half, around = len(text) - _LONGEST_TEXT, _LONGEST_TEXT // 2, self._longest
        if left_out <= 0:
            return self(text)
        # What a cut leaves of a secret is not known for one: it is within what is thrown away here.
        beginning, end = self(text[: half + around])[:-around], self(text[-half - around :])[around:]
        return f"{beginning[:half]} … ({left_out} characters more) … {end[-half:]}"


class _Lines:
    """Writes events, a line each. That nobody reads them any more is no reason for a turn to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = msg = _write


def _printable(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Show control characters as what they are: a producer's text, a reply_to say, must not move the cursor."""
    return {
        name: _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value) if isinstance(value, str) else value
        for name, value in event.items()
    }


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes the standard library's records; of one that can't be rendered only whose it is: the rest may be secret."""

    def __init__(self, stream: TextIO, *, content: bool) -> None:
        """`content`: whether what is said in conversations may be in a line."""
        super().__init__(stream)
        self.content = content

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        _log.warning("record_not_logged", logger=record.name, error=type(sys.exc_info()[1]).__name__)


def configure_logging(*, level: int = logging.INFO, content: bool = False) -> None:
    """Send structlog's events and the standard library's records to standard error, from a level on.

    With `content` exceptions have their texts, and libraries' records begin at the same level.
    """
    redact = Redaction(secrets_in(os.environ))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]

    def redacted(_logger: object, _name: str, event: EventDict) -> EventDict:
        # Before they are rendered: as JSON, a secret with a quote in it is written another way.
        return {name: redact.all_in(value) for name, value in event.items()}

    rendering: list[Processor]
    if sys.stderr.isatty():
        rendering = [_printable, structlog.dev.ConsoleRenderer()]
    else:
        rendering = [structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]
    exceptions = structlog.processors.format_exc_info
    if not content:
        exceptions = structlog.processors.ExceptionRenderer(traceback_without_texts)
    renderers: list[Processor] = [exceptions, redacted, *rendering]
    structlog.configure(
        # Not through the standard library, which costs as much again: a turn logs a line.
        processors=[*shared, *renderers],
        logger_factory=lambda *_: _Lines(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = LogHandler(sys.stderr, content=content)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if content else max(level, logging.INFO))
    # The root's own level does not hold back what a logger below it lets through: OPENAI_LOG=debug sets one, say.
    handler.setLevel(root.level)
    quiet_libraries()


def quiet_libraries() -> None:
    """Keep libraries from telling what is told here: each lost connection, once and with what follows from it."""
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A line for each message whose tracestate is none, with what its producer has put there.
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
