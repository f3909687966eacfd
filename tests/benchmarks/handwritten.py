"""The hand-written loop: what a good engineer writes with aio-pika and asyncpg in an afternoon, for one process.

    python -m tests.benchmarks.handwritten QUEUE [--unsafe]

For each message, in a task of its own: take the session's advisory lock, load its last three runs, execute (at once),
upsert the session and insert the run, unlock, publish the reply with a confirm, acknowledge. Its rows are those that
teamturn writes, in the same tables with the same indexes, and its replies have the same fields. It gets what makes it
fast: upsert and insert are one statement, and so one transaction without a round trip for its begin and end; statements
are prepared once a connection; the prefetch is the best of those tried (16, 64, 128 and 256; 256 was slower, the others
alike).

What teamturn does beyond that, it does not: sessions in order, a stored reply for a redelivered request, refusals,
time limits, hand-over, logs. `--unsafe` leaves the lock and the loading away as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any, Final

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

POOL: Final = 16
PREFETCH: Final = 64

_LOCK: Final = "select pg_advisory_lock(hashtextextended($1, 0))"
_UNLOCK: Final = "select pg_advisory_unlock(hashtextextended($1, 0))"
_HISTORY: Final = """
    select run_data from ai.agno_runs
    where session_id = $1 and status = 'COMPLETED' and parent_run_id is null
    order by run_index desc limit 3
"""
_STORE: Final = """
    with session as (
        insert into ai.agno_sessions (
            session_id, session_type, team_id, session_data, team_data, metadata, created_at, updated_at, turn_seq
        )
        values ($1, 'team', $2, $3, $4, '{}', $5, $5, 1)
        on conflict (session_id) do update
        set session_data = excluded.session_data, updated_at = excluded.updated_at,
            turn_seq = agno_sessions.turn_seq + 1
    )
    insert into ai.agno_runs (
        run_id, session_id, run_type, team_id, status, run_index, run_data, created_at, updated_at
    )
    values (
        $6, $1, 'team', $2, 'COMPLETED',
        (select coalesce(max(run_index), -1) + 1 from ai.agno_runs where session_id = $1),
        $7, $5, $5
    )
    on conflict (run_id) do nothing
"""

Json = dict[str, Any]


class Loop:
    """Takes each message from delivery to acknowledgement."""

    def __init__(self, pool: asyncpg.Pool, results: AbstractExchange, *, unsafe: bool) -> None:
        self._pool = pool
        self._results = results
        self._unsafe = unsafe

    async def take(self, message: AbstractIncomingMessage) -> None:
        """Execute one request, store it, answer it."""
        request = json.loads(message.body)
        session_id = request["session_id"]
        async with self._pool.acquire() as connection:
            if self._unsafe:
                reply = await _turn(connection, request, [])
            else:
                await connection.execute(_LOCK, session_id)
                try:
                    history = [json.loads(row["run_data"]) for row in await connection.fetch(_HISTORY, session_id)]
                    reply = await _turn(connection, request, history)
                finally:
                    await connection.execute(_UNLOCK, session_id)
        answer = aio_pika.Message(
            json.dumps(reply).encode(),
            content_type="application/json",
            delivery_mode=2,
            message_id=request["run_id"],
            correlation_id=message.correlation_id or request["run_id"],
            type="run.reply",
        )
        await self._results.publish(answer, f"team.{request['team_id']}")
        await message.ack()


async def _turn(connection: Any, request: Json, history: list[Json]) -> Json:
    started = time.time()
    content = _execute(request, history)
    ended = time.time()
    await connection.execute(
        _STORE,
        request["session_id"],
        request["team_id"],
        json.dumps({"session_state": {}, "session_metrics": {"details": {}, **_usage()}}),
        json.dumps({"name": request["team_id"], "team_id": request["team_id"]}),
        int(started),
        request["run_id"],
        json.dumps(_run(request, content, started, ended)),
    )
    return _reply(request, content, started, ended)


def _execute(request: Json, _history: list[Json]) -> str:
    return str(request["input"])


def _usage() -> Json:
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "model_requests": 0, "tool_calls": 0}


def _run(request: Json, content: str, started: float, ended: float) -> Json:
    return {
        "run_id": request["run_id"],
        "team_id": request["team_id"],
        "team_name": request["team_id"],
        "session_id": request["session_id"],
        "user_id": None,
        "input": {"input_content": request["input"]},
        "content": content,
        "content_type": "str",
        "status": "COMPLETED",
        "created_at": int(started),
        "messages": [{"role": "user", "content": request["input"]}, {"role": "assistant", "content": content}],
        "metrics": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "duration": ended - started},
        "turn": 1,
        "attempt": 1,
        "member_responses": [],
    }


def _reply(request: Json, content: str, started: float, ended: float) -> Json:
    return {
        "run_id": request["run_id"],
        "session_id": request["session_id"],
        "session_type": "team",
        "team_id": request["team_id"],
        "agent_id": None,
        "workflow_id": None,
        "user_id": None,
        "status": "COMPLETED",
        "content": content,
        "member_responses": [],
        "turn": 1,
        "attempt": 1,
        "metrics": {**_usage(), "duration": ended - started, "queue_time": None},
        "error": None,
        "created_at": int(started),
        "completed_at": int(ended),
    }


async def main(queue_name: str, *, unsafe: bool, prefetch: int) -> None:
    """Consume until SIGTERM ends the process."""
    url = os.environ["TEAMTURN_AMQP_URL"]
    async with asyncpg.create_pool(os.environ["TEAMTURN_POSTGRES_URL"], min_size=POOL, max_size=POOL) as pool:
        consuming, publishing = await aio_pika.connect(url), await aio_pika.connect(url)
        channel = await consuming.channel()
        await channel.set_qos(prefetch)
        results = await publishing.channel(publisher_confirms=True)
        exchange = await results.get_exchange(f"{os.environ['TEAMTURN_PREFIX']}.results", ensure=False)
        queue = await channel.get_queue(queue_name, ensure=False)
        await queue.consume(Loop(pool, exchange, unsafe=unsafe).take)
        print("consuming", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("queue")
    parser.add_argument("--unsafe", action="store_true")
    parser.add_argument("--prefetch", type=int, default=PREFETCH)
    options = parser.parse_args()
    asyncio.run(main(options.queue, unsafe=options.unsafe, prefetch=options.prefetch))
