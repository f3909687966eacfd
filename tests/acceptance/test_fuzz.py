"""10,000 messages of every kind through a real worker: none stops it, and each ends as run, REJECTED or dead letter."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aio_pika
import pytest

from tests.acceptance.stage import NEWSROOM, TEAMS, Stage, staged
from tests.support.fuzz import Shooter, Shot, resident_bytes
from tests.support.waiting import eventually
from worker.sandbox import Sandbox

THOUSAND: Final = 1_000
AT_ONCE: Final = 64
SEED: Final = int(os.environ.get("TEST_FUZZ_SEED", "0")) or random.SystemRandom().randrange(10**6)
UNFORESEEN: Final = ("request_failed", "message_unreadable", "message_not_passed_on", "result_refused")


class Ends:
    """Hears how messages end: by a reply, or as a dead letter."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.replied: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()

    async def listen(self) -> None:
        broker = self._stage.broker
        results = await broker.channel.get_queue(f"{broker.prefix}.results", ensure=False)
        dead = await broker.channel.get_queue(f"{broker.prefix}.dead", ensure=False)
        await results.consume(self._reply, no_ack=True)
        await dead.consume(self._letter, no_ack=True)

    async def _reply(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.replied[message.correlation_id or ""] += 1
        self.statuses[json.loads(message.body)["status"]] += 1

    async def _letter(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.dead[message.message_id or ""] += 1

    def missing(self, shots: Sequence[Shot]) -> list[Shot]:
        return [shot for shot in shots if shot.token not in self.replied and shot.token not in self.dead]


async def _publish(stage: Stage, shots: Sequence[Shot]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(shot: Shot) -> None:
        async with places:
            await stage.broker.publish(shot.body, routing_key=shot.routing_key, **shot.properties)

    await asyncio.gather(*map(one, shots))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("thousands", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_none_of_so_many_thousand_messages_stops_the_worker_or_is_lost(
    sandbox: Sandbox, template: str, tmp_path: Path, thousands: int
) -> None:
    print(f"TEST_FUZZ_SEED={SEED}")
    resident = []
    async with staged(sandbox, template, tmp_path, teams=f"{TEAMS},{NEWSROOM}") as stage:
        ends = Ends(stage)
        await ends.listen()
        shooter = Shooter(SEED, largest_bytes=stage.settings.max_request_bytes)
        for _ in range(thousands):
            shots = list(shooter.shots(THOUSAND))
            await _publish(stage, shots)
            # A message that is lost is among those that the failure names.
            await eventually(lambda shots=shots: ends.missing(shots) == [], seconds=60)  # type: ignore[misc]
            resident.append(resident_bytes(stage.worker.process.pid))
        assert stage.worker.process.returncode is None
        stored = await stage.database.fetchval("select count(*) from ai.agno_runs")
        unforeseen = [line for line in stage.worker.lines if any(word in line for word in UNFORESEEN)]
    assert unforeseen == []
    ended = {"run": stored, "rejected": ends.statuses["REJECTED"], "dead letter": ends.dead.total()}
    assert min(ended.values()) > thousands * THOUSAND // 40, f"too few of a kind to show anything: {ended}"
    assert resident[-1] <= resident[0] * 1.1, [f"{size / 2**20:.0f} MiB" for size in resident]
