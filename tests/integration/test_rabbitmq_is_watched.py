"""What dashboard, alerts and KEDA ask of RabbitMQ, asked of a real one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
import yaml  # type: ignore[import-untyped]
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from tests.support.manifests import DEPLOY
from tests.support.metrics import GRAFANA, table
from tests.support.own_servers import own_rabbitmq
from tests.support.waiting import eventually
from worker.broker import connected
from worker.intake.topology import Topology, apply
from worker.sandbox.rabbitmq import RabbitmqNode
from worker.sandbox.site import free_port

TOPOLOGY = Topology("teamturn", 16)
WAITING = 3
"""Requests in partition 5; partition 7 has a consumer that holds another one."""
_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


pytestmark = pytest.mark.asyncio(loop_scope="module")

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Watched:
    """A node with requests that wait, one that is held, and a consumer; and where it is asked about them."""

    node: RabbitmqNode
    metrics_port: int
    management_port: int

    async def get(self, port: int, path: str, asked: Mapping[str, Any]) -> httpx2.Response:
        user = urlsplit(self.node.url)
        async with httpx2.AsyncClient(trust_env=False, auth=(user.username or "", user.password or "")) as client:
            answer = await client.get(f"http://127.0.0.1:{port}{path}", params=asked, timeout=10)
        answer.raise_for_status()
        return answer

    async def scraped(self) -> dict[str, dict[Labels, float]]:
        """What Prometheus has of it: values by labels by name."""
        found: dict[str, dict[Labels, float]] = {}
        jobs = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())["scrape_configs"]
        for job in [job for job in jobs if job["job_name"].startswith("rabbitmq")]:
            page = await self.get(self.metrics_port, job.get("metrics_path", "/metrics"), job.get("params", {}))
            for name, labels, value in _SERIES.findall(page.text):
                found.setdefault(name, {})[frozenset(re.findall(r'(\w+)="([^"]*)"', labels))] = float(value)
        return found

    async def counted(self) -> bool:
        """Whether RabbitMQ has come to count what there is."""
        ready = await self.of_queues("rabbitmq_detailed_queue_messages_ready")
        unacknowledged = await self.of_queues("rabbitmq_detailed_queue_messages_unacked")
        return (ready.get(TOPOLOGY.partition(5)), unacknowledged.get(TOPOLOGY.partition(7))) == (WAITING, 1)

    async def of_queues(self, metric: str) -> dict[str, float]:
        series = (await self.scraped()).get(metric, {})
        return {dict(labels)["queue"]: value for labels, value in series.items()}


async def held(_: AbstractIncomingMessage) -> None:
    """A consumer that never acknowledges."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched() -> AsyncIterator[Watched]:
    ports = {"prometheus": free_port(), "management": free_port()}
    listening = "".join(f"{name}.tcp.ip = 127.0.0.1\n{name}.tcp.port = {port}\n" for name, port in ports.items())
    listening += "collect_statistics_interval = 500\n"
    started = own_rabbitmq(
        listening,
        plugins=("rabbitmq_management", "rabbitmq_prometheus"),
        erlang="-rabbit quorum_tick_interval 500",  # how often a queue is counted: 5 s otherwise
    )
    async with started as node, connected(SecretStr(node.url), name="test") as broker:
        await apply(broker.amqp, TOPOLOGY)
        channel = await broker.amqp.channel()
        request = Message(b"{}", delivery_mode=DeliveryMode.PERSISTENT)
        for partition in [5] * WAITING + [7]:
            await channel.default_exchange.publish(request, routing_key=TOPOLOGY.partition(partition))
        consumed = await channel.get_queue(TOPOLOGY.partition(7))
        await consumed.consume(held)
        watched = Watched(node, ports["prometheus"], ports["management"])
        await eventually(watched.counted)
        yield watched


async def test_it_tells_every_metric_that_the_table_has_of_it_with_these_labels(watched: Watched) -> None:
    there = await watched.scraped()
    for metric in [metric for metric in table().values() if metric.name.startswith("rabbitmq_")]:
        assert metric.name in there
        assert {frozenset(name for name, _ in labels) for labels in there[metric.name]} == {metric.labels}


async def test_each_queue_s_consumers_are_told(watched: Watched) -> None:
    counted = await watched.of_queues("rabbitmq_detailed_queue_consumers")
    assert (counted[TOPOLOGY.partition(7)], counted[TOPOLOGY.partition(5)]) == (1, 0)
    assert counted.keys() >= {queue.name for queue in TOPOLOGY.queues()}


async def test_keda_s_question_is_answered_with_all_unfinished_requests(watched: Watched) -> None:
    scaling = yaml.safe_load_all((DEPLOY / "k8s" / "keda" / "scaling.yaml").read_text())
    (trigger,) = next(one for one in scaling if one["kind"] == "ScaledObject")["spec"]["triggers"]
    given = trigger["metadata"]
    # As KEDA asks with `useRegex`.
    asked = {"page": 1, "use_regex": "true", "pagination": "false", "name": given["queueName"]}

    async def messages() -> int:
        page = {**asked, "page_size": given["pageSize"]}
        answer = await watched.get(watched.management_port, "/api/queues/%2F", page)
        return sum(queue.get("messages", 0) for queue in answer.json()["items"])

    async def all_counted() -> bool:
        return await messages() == WAITING + 1

    await eventually(all_counted)
