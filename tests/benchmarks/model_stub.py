"""A model server that takes its time: `python -m tests.benchmarks.model_stub SECONDS`.

Its answer is how many requests it had under way when the question came, that one included.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from tests.support.model_server import ModelServer, Waits
from tests.support.model_wire import Says

URL_VARIABLE: Final = "BENCH_MODEL_URL"
"""Where its clients find its address."""


async def main(seconds: float) -> None:
    """Serve until SIGTERM ends the process."""
    async with ModelServer(lambda _: Waits(seconds, Says(str(server.under_way)))) as server:
        print(f"serving {server.url} ", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
