"""What is said through a pipe, or from a file."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

_LINES_AHEAD = 100


async def lines_of_standard_input() -> AsyncIterator[str]:
    """Yield the lines of standard input that are not empty, as they come."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    room = threading.Semaphore(_LINES_AHEAD)

    def read() -> None:
        # Not sys.stdin itself: whoever leaves while a thread waits in it would not get out.
        with (
            suppress(RuntimeError),  # the loop is closed: nobody reads on
            open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as file,
        ):
            for line in file:
                room.acquire()
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while (line := await lines.get()) is not None:
        room.release()
        if line.strip():
            yield line.rstrip("\r\n")
