"""Agno's log lines: through ours, a JSON object each, with what looks like a key cut out.

Agno writes to standard output, past any redaction, and quotes providers and arguments of tools. Such a quotation is
left out as an exception's text is, unless TEAMTURN_LOG_CONTENT asks for it.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Final

from agno.exceptions import redact_secrets
from agno.utils.log import AgnoLogger

from worker.operations.logging import LogHandler
from worker.operations.tracebacks import LEFT_OUT

_LOGGERS: Final = ("agno", "agno-team", "agno-workflow")
_QUOTATION: Final = re.compile(r"[:('\"\[{\n]")
"""What stands before one: "Error in Team run: ...", "Could not run function look_up(what='...')"."""


def log_through_ours() -> None:
    """Have Agno's records go where everybody's go, in a process whose logs are ours. A logger of the user's stays."""
    ours = [one for one in logging.getLogger().handlers if isinstance(one, LogHandler)]
    if not ours:
        return
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if isinstance(logger, AgnoLogger) and not logger.propagate:
            logger.handlers[:] = []
            logger.propagate = True
            logger.addFilter(partial(_cut, content=ours[0].content))


def _cut(record: logging.LogRecord, *, content: bool) -> bool:
    text = redact_secrets(record.getMessage())
    if not content:
        # An error can be the whole message.
        told = type(record.msg).__name__ if isinstance(record.msg, BaseException) else _QUOTATION.split(text, 1)[0]
        text = text if told == text else f"{told.rstrip()} {LEFT_OUT}"
    record.msg, record.args = text, None
    return True
