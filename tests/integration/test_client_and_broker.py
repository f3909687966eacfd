"""RunClient while RabbitMQ restarts, is short of memory, or takes small messages only."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import SecretStr

from schemas.requests import RunRequest
from tests.acceptance.stage import database_of_its_own
from tests.support.fleet import Gate, echo
from tests.support.own_servers import memory_alarm, own_rabbitmq
from tests.support.waiting import eventually
from tests.support.workers import worker_of
from worker.client import RunClient
from worker.errors import ClientTimedOut, RequestTooLarge
from worker.sandbox import Sandbox
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGEST_BYTES = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RabbitmqNode]:
    async with own_rabbitmq(f"max_message_size = {LARGEST_BYTES}\n") as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def own(node: RabbitmqNode, sandbox: Sandbox, template: str) -> AsyncIterator[Settings]:
    """Settings with that node."""
    async with database_of_its_own(sandbox, template) as url:
        yield Settings(
            amqp_url=SecretStr(node.url),
            postgres_url=SecretStr(url),
            prefix=f"t-{uuid.uuid4().hex[:8]}",
            partitions=2,
            prefetch=32,
            drain_timeout=5,
        )


def client_of(settings: Settings) -> RunClient:
    return RunClient(settings.amqp_url.get_secret_value(), prefix=settings.prefix)


def asked(team_id: str, run_id: str, text: str = "hello") -> RunRequest:
    return RunRequest(run_id=run_id, session_id=f"s-{run_id}", team_id=team_id, input=text)


async def test_runs_and_streams_go_on_when_it_is_restarted(own: Settings, node: RabbitmqNode) -> None:
    gate = Gate()
    run_ids = [f"r{number}" for number in range(10)]
    async with worker_of(own, gate.executor), client_of(own) as client:
        answers = [asyncio.create_task(client.run(asked("gate", run_id))) for run_id in run_ids]
        stream = client.stream(asked("gate", "watched"))
        first = await anext(stream)
        await eventually(lambda: len(gate.started) == len(run_ids) + 1)
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)
        gate.open.set()
        replies = await asyncio.gather(*answers)
        events = [first, *[event async for event in stream]]
    assert [(reply.run_id, reply.content, reply.turn) for reply in replies] == [(one, "hello", 1) for one in run_ids]
    assert events[0].type == "run_started"
    assert events[-1].type == "run_finished"
    assert events[-1].reply.content == "hello"
    assert sorted(gate.started) == sorted([*run_ids, "watched"]), "each was taken once"


@pytest.mark.slow
async def test_while_it_is_short_of_memory_requests_wait_and_then_go_on(own: Settings, node: RabbitmqNode) -> None:
    async with worker_of(own, echo), client_of(own) as client:
        async with memory_alarm(node):
            patient = [asyncio.create_task(client.run(asked("echo", f"r{number}"))) for number in range(5)]
            await eventually(lambda: client._reconnector.trouble is not None)
            with pytest.raises(ClientTimedOut, match="its memory or disk is short"):
                await client.run(asked("echo", "impatient"), timeout_seconds=0.5)
            patient.append(asyncio.create_task(client.result(asked("echo", "impatient"))))
            submitted = asyncio.create_task(client.submit(asked("echo", "results"), to_results=True))
            await eventually(lambda: len(client._pending) == len(patient))
        replies = await asyncio.gather(*patient)
        assert await submitted == "results"
    assert [reply.content for reply in replies] == ["hello"] * 6


async def test_what_is_too_large_for_it_is_said_to_be_and_costs_nobody_else_an_answer(own: Settings) -> None:
    gate = Gate()
    async with worker_of(own, gate.executor), client_of(own) as client:
        other = asyncio.create_task(client.run(asked("gate", "other")))
        await eventually(lambda: gate.started == ["other"])
        with pytest.raises(RequestTooLarge, match=rf"and RabbitMQ takes {LARGEST_BYTES} at most"):
            await client.run(asked("gate", "large", "x" * LARGEST_BYTES))
        gate.open.set()
        assert (await other).content == "hello"
