"""The peer that runs Agno on its own durable queue: an AgentOS that is given a session's runs at once.

    python -m tests.benchmarks.agno_queue --runs 5 --rounds 3

It prints, as JSON, after how many seconds the last run of each round was done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import httpx
from agno.db.postgres import AsyncPostgresDb
from agno.job_queue import QueueConfig
from agno.os import AgentOS

from tests.benchmarks.agno_team import team_of

_LOOK_SECONDS = 0.01
_GIVE_UP_SECONDS = 60


async def main(*, runs: int, rounds: int) -> list[float]:
    """Return the seconds of each round; the first one, in which the tables are made, is not counted."""
    address = os.environ["TEAMTURN_POSTGRES_URL"].replace("postgresql://", "postgresql+asyncpg://")
    db = AsyncPostgresDb(db_url=address)
    app = AgentOS(teams=[team_of(db)], db=db, queue=QueueConfig(durable=True), telemetry=False).get_app()
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://os") as client:
        taken = [await _round(client, db, f"session-{number}", runs) for number in range(rounds + 1)]
    return taken[1:]


async def _round(client: httpx.AsyncClient, db: AsyncPostgresDb, session_id: str, runs: int) -> float:
    start = time.monotonic()
    for number in range(runs):
        form = {"message": f"question {number}", "session_id": session_id, "stream": "false", "background": "true"}
        answer = await client.post("/teams/capital/runs", data=form)
        answer.raise_for_status()
    async with asyncio.timeout(_GIVE_UP_SECONDS):
        while True:
            found = await db.get_runs(session_id=session_id, deserialize=False)
            rows = found[0] if isinstance(found, tuple) else found
            if sum(row["status"] == "COMPLETED" for row in rows) == runs:
                return time.monotonic() - start
            await asyncio.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps({"seconds": asyncio.run(main(runs=options.runs, rounds=options.rounds))}))
