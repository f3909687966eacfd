"""How many turns of a Team are under way at once in one worker, while their model takes its time."""

from __future__ import annotations

import json

from tests.benchmarks.figures import Finding, Measured
from tests.benchmarks.model_stub import URL_VARIABLE
from tests.benchmarks.stage import Stage
from tests.benchmarks.traffic import Traffic, requests


async def in_flight_model(stage: Stage) -> list[Finding]:
    """One turn of each of many sessions; what limits it is how fast the model layer gets requests out."""
    plan = stage.plan
    load = requests("asked", plan.in_flight_model, sessions=plan.in_flight_model)
    async with (
        stage.stand() as settings,
        Traffic(settings) as traffic,
        stage.program("model_stub", settings, str(plan.in_flight_seconds)) as stub,
    ):
        environment = {
            "TEAMTURN_MAX_CONCURRENT_TURNS": str(plan.in_flight_model),
            URL_VARIABLE: await stub.said(r"serving (\S+) "),
        }
        async with stage.worker(settings, "tests.benchmarks.model_team:asked", **environment) as worker:
            await worker.consumes()
            idle, cpu = worker.peak_memory_mb(), worker.cpu_seconds()
            await traffic.publish(load)
            await traffic.replied(len(load), worker)
            memory, cpu = worker.peak_memory_mb(), worker.cpu_seconds() - cpu
        traffic.check(load)
    at_once = max(int(json.loads(reply.body)["content"]) for reply in traffic.replies)
    details = {
        "peak_memory_mb": round(memory, 1),
        "kib_a_turn": round((memory - idle) * 1024 / at_once, 1),
        "turns": len(load),
        "repeated_replies": traffic.repeated,
        "cpu_ms_a_turn": round(cpu / len(load) * 1000, 2),
        "seconds": round(traffic.replies[-1].at - traffic.replies[0].at + plan.in_flight_seconds, 1),
    }
    return [Finding("in_flight_model", at_once, [Measured("teamturn", "requests at once", [at_once])], details)]
