"""A sandbox of this module's own: the other tests share one, and these restart and kill it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import aio_pika
import asyncpg
import pytest
from pamqp.common import FieldTable

from worker.sandbox import Sandbox
from worker.sandbox.containers import check_engine
from worker.sandbox.errors import WayClosedError
from worker.sandbox.postgres import PostgresNode

_QUEUE: FieldTable = {"x-queue-type": "quorum"}


def _engine_is_missing() -> str | None:
    try:
        check_engine()
    except WayClosedError as exc:
        return str(exc)
    return None


def _processes_in(directory: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(directory) in line and not line.startswith("Z")]


async def _store(box: Sandbox) -> None:
    """Leave a message and a row."""
    broker = await aio_pika.connect(box.amqp_url)
    channel = await broker.channel()
    await channel.declare_queue("kept", durable=True, arguments=_QUEUE)
    message = aio_pika.Message(b"hello", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, "kept")
    await broker.close()
    database = await asyncpg.connect(box.postgres_url)
    await database.execute("create table kept as select 'hello' as word")
    await database.close()


async def _stored(box: Sandbox) -> tuple[bytes, str]:
    """Read them again."""
    broker = await aio_pika.connect(box.amqp_url)
    channel = await broker.channel()
    queue = await channel.declare_queue("kept", durable=True, arguments=_QUEUE)
    message = await queue.get(timeout=20)
    await message.nack()
    await broker.close()
    database = await asyncpg.connect(box.postgres_url)
    word = await database.fetchval("select word from kept")
    await database.close()
    return message.body, word


def _check(box: Sandbox) -> None:
    asyncio.run(_store(box))
    assert asyncio.run(_stored(box)) == (b"hello", "hello")
    box.postgres.restart()
    box.rabbitmq.restart()
    assert asyncio.run(_stored(box)) == (b"hello", "hello"), "after a restart"
    # Not before the restart: see RabbitmqNode.kill about young queues.
    box.rabbitmq.kill()
    box.postgres.kill()
    box.postgres.start()
    box.rabbitmq.start()
    assert asyncio.run(_stored(box)) == (b"hello", "hello"), "after a crash"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_private_servers_answer_survive_restarts_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAMTURN_SANDBOX", "binaries")
    said: list[str] = []
    with Sandbox(report=said.append, own=True) as box:
        directory = box.site.directory
        _check(box)
        assert isinstance(box.postgres, PostgresNode)
        box.postgres.shut_down_immediately()
        box.postgres.start()
        assert asyncio.run(_stored(box)) == (b"hello", "hello"), "after an immediate shutdown"
        assert _processes_in(directory)
    assert "RabbitMQ: this machine's binaries" in said
    assert not directory.exists()
    assert _processes_in(directory) == []


@pytest.mark.timeout(600)
@pytest.mark.needs_docker
def test_servers_in_docker_answer_and_survive_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = _engine_is_missing()
    if reason:
        pytest.skip(reason)
    monkeypatch.setenv("TEAMTURN_SANDBOX", "docker")
    with Sandbox() as box:
        assert box.rabbitmq.way.startswith("Docker")
        _check(box)
