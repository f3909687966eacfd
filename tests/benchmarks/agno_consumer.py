"""The peer that runs Agno: an aio-pika consumer whose Team keeps its sessions with AsyncPostgresDb.

    python -m tests.benchmarks.agno_consumer QUEUE --driver asyncpg --prefetch 32

What Agno's users write today. It publishes its replies with a confirm and acknowledges after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import aio_pika
from agno.db.postgres import AsyncPostgresDb
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.agno_team import team_of


async def main(queue_name: str, *, prefetch: int, driver: str) -> None:
    """Consume until SIGTERM ends the process."""
    url = os.environ["TEAMTURN_AMQP_URL"]
    address = os.environ["TEAMTURN_POSTGRES_URL"].replace("postgresql://", f"postgresql+{driver}://")
    team = team_of(AsyncPostgresDb(db_url=address))
    consuming, publishing = await aio_pika.connect(url), await aio_pika.connect(url)
    channel = await consuming.channel()
    await channel.set_qos(prefetch)
    results = await publishing.channel(publisher_confirms=True)
    exchange = await results.get_exchange(f"{os.environ['TEAMTURN_PREFIX']}.results", ensure=False)

    async def take(message: AbstractIncomingMessage) -> None:
        request = json.loads(message.body)
        output = await team.arun(request["input"], session_id=request["session_id"], run_id=request["run_id"])
        reply = {
            "run_id": request["run_id"],
            "session_id": request["session_id"],
            "status": output.status.value,
            "content": output.content,
        }
        body = json.dumps(reply).encode()
        await exchange.publish(aio_pika.Message(body, delivery_mode=2, message_id=request["run_id"]), "team.capital")
        await message.ack()

    queue = await channel.get_queue(queue_name, ensure=False)
    await queue.consume(take)
    print("consuming", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("queue")
    parser.add_argument("--prefetch", type=int, required=True)
    parser.add_argument("--driver", required=True, help="SQLAlchemy's name for it")
    options = parser.parse_args()
    asyncio.run(main(options.queue, prefetch=options.prefetch, driver=options.driver))
