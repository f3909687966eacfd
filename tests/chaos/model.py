"""The model stub, a process of its own: `python -m tests.chaos.model`.

It says on standard output where it serves, and then, a JSON line each, every call that it gets. A call that is held is
answered when its run and step come as a line on standard input; at the end of that input it ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

from tests.chaos.script import Order, answer_of, seconds_of, step_of
from tests.support.model_server import Answer, ModelServer, Waits
from tests.support.model_wire import Asked

HOLD_SECONDS: Final = 12.0
"""A held call that nobody lets go on is answered then."""


class Stub:
    """Answers as the script says, and tells of every call."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], asyncio.Event] = {}

    def answer(self, asked: Asked) -> Answer:
        """Tell of the call, and answer it."""
        order = Order.read(asked.prompt)
        said = [message["role"] for message in asked.messages]
        results = said[::-1].index("user")
        step = step_of(asked.model, order, results)
        is_held = order.hold == step and (order.run, step) not in self._held
        _tell({"run": order.run, "step": step, "began": time.time(), "worker": asked.api_key, "held": is_held})
        says = answer_of(order, step)
        if not is_held:
            return Waits(seconds_of(order.run, step), says)
        event = self._held[order.run, step] = asyncio.Event()
        asyncio.get_running_loop().call_later(HOLD_SECONDS, event.set)
        return Waits(event, says)

    def let_go(self, line: str) -> None:
        """Answer a call that is held; one that is still to come is not held at all."""
        run, step = line.split()
        self._held.setdefault((run, step), asyncio.Event()).set()


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def main() -> None:
    """Serve until the end of standard input."""
    stub = Stub()

    def answer(asked: Asked) -> Answer:
        server.asked.clear()  # they would be kept to the end
        return stub.answer(asked)

    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with ModelServer(answer) as server:
        _tell({"url": server.url})
        while line := await reader.readline():
            stub.let_go(line.decode())


if __name__ == "__main__":
    asyncio.run(main())
