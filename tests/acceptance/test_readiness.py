"""What probes are told: a worker that waits for something says what, and is ready again when that is back."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.acceptance.stage import DATA, TEAMS, Gates, worker_on
from tests.support.broker import TestBroker
from tests.support.cable import Cable
from tests.support.fleet import Crew, Supervised
from tests.support.probing import Probe, free_port
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker.settings import Settings

MISTAKE = 2


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.fixture
async def crew(settings: Settings, broker: TestBroker) -> AsyncIterator[Crew]:  # noqa: ARG001 - it deletes the queues
    async with Crew(settings) as crew:
        yield crew


@pytest.fixture
def probe() -> Probe:
    return Probe(free_port())


@pytest.mark.usefixtures("broker")
async def test_a_worker_that_consumes_is_alive_and_ready_and_tells_no_secret(settings: Settings, probe: Probe) -> None:
    async with worker_on(settings, TEAMTURN_HTTP_PORT=str(probe.port)):
        await eventually(probe.is_ready)
        alive = await probe.get("/healthz")
        told = await probe.get("/readyz")
        counted, at_hand = await probe.get("/metrics"), await probe.get("/turns")
    pages = (alive, told, counted, at_hand)
    assert [page.status_code for page in pages] == [200] * 4
    assert 'teamturn_ready{part="taking"} 1.0' in counted.text
    assert at_hand.json() == {"total": 0, "behind": 0, "turns": []}
    for url in (settings.amqp_url, settings.postgres_url):
        password = url.get_secret_value().split("@")[0].rsplit(":", 1)[-1]
        assert not any(password in page.text for page in pages)


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize(
    ("url", "reason"), [("postgres_url", "Postgres can't be reached"), ("amqp_url", "RabbitMQ can't be reached")]
)
async def test_without_one_of_its_servers_it_is_not_ready_and_when_that_is_back_it_is(
    settings: Settings, probe: Probe, url: str, reason: str
) -> None:
    async with Cable(getattr(settings, url).get_secret_value()) as cable:
        by_cable = settings.model_copy(update={url: SecretStr(cable.url)})
        async with worker_on(by_cable, TEAMTURN_HTTP_PORT=str(probe.port)):
            await eventually(probe.is_ready)
            cable.cut()
            await eventually(partial(probe.says, reason))
            told = await probe.ready()
            assert told["consuming"] is False
            assert (await probe.get("/healthz")).status_code == 200, "a restart would not help"
            cable.plug_in()
            await eventually(probe.is_ready)


async def test_one_that_has_nothing_to_consume_since_others_have_it_all_is_ready(
    settings: Settings, crew: Crew, probe: Probe
) -> None:
    for _ in range(settings.partitions):
        await crew.hire()
    await crew.hire(TEAMTURN_HTTP_PORT=str(probe.port))
    await eventually(probe.is_ready)
    told = await probe.ready()
    assert (told["consuming"], told["standing_by"]) == (False, True)


async def test_one_that_drains_says_so(settings: Settings, broker: TestBroker, gates: Gates, probe: Probe) -> None:
    async with worker_on(settings, gates, TEAMTURN_HTTP_PORT=str(probe.port)) as worker:
        await eventually(probe.is_ready)
        await broker.ask("s1", "gate", team_id="gated")
        await gates.reached("gate")
        worker.terminate()
        await eventually(partial(probe.says, "draining"))
        assert (await probe.get("/healthz")).status_code == 200
        gates.open("gate")
        assert await worker.exited() == 0


async def test_of_several_processes_each_has_a_port_of_its_own(settings: Settings, crew: Crew, probe: Probe) -> None:  # noqa: ARG001
    async with Supervised(2, settings, TEAMTURN_HTTP_PORT=str(probe.port)):
        await eventually(probe.is_ready)
        await eventually(Probe(probe.port + 1).is_ready)


async def test_a_port_that_was_asked_for_and_is_taken_ends_the_start_with_a_line_that_names_it(
    settings: Settings, probe: Probe
) -> None:
    environment = environment_of(settings, TEAMTURN_TEAMS=TEAMS, TEAMTURN_HTTP_PORT=str(probe.port))
    with socket.create_server(("", probe.port)):
        code, out, err = await run_command("worker", environment=environment, cwd=DATA)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1), err
    assert "TEAMTURN_HTTP_PORT" in err
    assert str(probe.port) in err


@pytest.mark.usefixtures("broker")
async def test_a_default_port_that_another_worker_has_is_done_without(settings: Settings) -> None:
    # Both of them: some other program on this machine may have the port.
    async with worker_on(settings, TEAMTURN_HTTP_PORT="") as one, worker_on(settings, TEAMTURN_HTTP_PORT="") as other:
        await one.logged("worker_started")
        await other.logged("worker_started")
        warned = [*one.events("http_not_listening"), *other.events("http_not_listening")]
    assert warned
    assert "8080" in warned[0]["reason"]


async def test_more_processes_than_there_are_ports_are_a_mistake(settings: Settings) -> None:
    environment = environment_of(settings, TEAMTURN_TEAMS=TEAMS, TEAMTURN_HTTP_PORT="65535")
    code, _, err = await run_command("worker", "--processes", "2", environment=environment, cwd=DATA)
    assert (code, len(err.splitlines())) == (MISTAKE, 1), err
    assert "TEAMTURN_HTTP_PORT" in err
