"""Agno's log lines: through ours, a JSON object each, with what looks like a key cut out.

Agno writes to standard output, past any redaction, and quotes providers and arguments of tools.
"""

from __future__ import annotations

import logging
from typing import Final

import structlog
from agno.exceptions import redact_secrets
from agno.utils.log import AgnoLogger

_LOGGERS: Final = ("agno", "agno-team", "agno-workflow")


def log_through_ours() -> None:
    """Have Agno's records go where everybody's go, in a process whose logs are ours. A logger of the user's stays."""
    if not any(isinstance(one.formatter, structlog.stdlib.ProcessorFormatter) for one in logging.getLogger().handlers):
        return
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if isinstance(logger, AgnoLogger) and not logger.propagate:
            logger.handlers[:] = []
            logger.propagate = True
            logger.addFilter(_without_keys)


def _without_keys(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact_secrets(record.getMessage()), None
    return True
