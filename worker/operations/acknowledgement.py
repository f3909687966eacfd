"""RabbitMQ's acknowledgement time-out. AMQP does not tell it; rabbitmqctl does, on the broker's own machine."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import suppress
from typing import Final

_LIMIT_SECONDS: Final = 15.0
_QUESTION: Final = "{rabbit_nodes:cluster_name(), application:get_env(rabbit, consumer_timeout)}."
_ANSWER: Final = re.compile(r'\{<<"(?P<cluster>[^"]*)">>,\s*(?:\{ok,\s*(?P<milliseconds>\w+)\}|undefined)\}')


class Unreadable(Exception):
    """It can't be read from here; the message says why."""


async def acknowledgement_timeout(cluster: str) -> float | None:
    """Return the time-out of this cluster in seconds, None if it has none. Raises Unreadable.

    A policy or an argument of a queue may say otherwise; teamturn's queues have no such argument.
    """
    program = shutil.which("rabbitmqctl")
    if program is None:
        raise Unreadable("rabbitmqctl is not on this machine")
    answer = _ANSWER.search(await _said_by(program))
    if answer is None:
        raise Unreadable("rabbitmqctl reaches no node from here")
    if answer["cluster"] != cluster:
        raise Unreadable(f"rabbitmqctl reaches another cluster, {answer['cluster']}")
    milliseconds = answer["milliseconds"]
    return int(milliseconds) / 1000 if milliseconds is not None and milliseconds.isdecimal() else None


async def _said_by(program: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(program, "eval", _QUESTION),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        raise Unreadable(f"rabbitmqctl says nothing within {_LIMIT_SECONDS:g} s") from None
    finally:
        # Debian's is a script that starts another: all of them.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return said.decode(errors="replace")
