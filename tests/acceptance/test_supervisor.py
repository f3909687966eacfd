"""`teamturn worker --processes N`: so many workers, whatever becomes of each, until it is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from tests.acceptance.stage import DATA, QUICKER, Gates, stored_runs
from tests.support.broker import TestBroker
from tests.support.cable import Cable
from tests.support.fleet import TEAMS, Crew, Supervised
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker.settings import Settings

MISTAKE = 2


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.fixture
async def crew(settings: Settings, broker: TestBroker) -> AsyncIterator[Crew]:  # noqa: ARG001 - it deletes the queues
    """Hires nobody: it looks at the fleet."""
    async with Crew(settings) as crew:
        yield crew


async def consuming(supervised: Supervised, crew: Crew, *, processes: int) -> None:
    """Wait until that many processes are the fleet."""
    await supervised.logged("worker_process_started", times=processes)

    async def all_there() -> bool:
        state = await crew.state()
        return len(state.workers) == processes and all(one.owner and one.consumers == 1 for one in state.partitions)

    await eventually(all_there)


async def members(crew: Crew) -> set[int]:
    """The process ids of the fleet's workers."""
    return {int(one.worker.rpartition(":")[2]) for one in (await crew.state()).workers}


async def ask_a_turn_that_is_held(broker: TestBroker, gates: Gates) -> str:
    run_id = await broker.ask("s1", "gate", team_id="gated")
    await gates.reached("gate")
    return run_id


async def test_so_many_workers_share_the_partitions(settings: Settings, crew: Crew) -> None:
    async with Supervised(2, settings) as supervised:
        await consuming(supervised, crew, processes=2)
        assert await members(crew) == set(supervised.pids)


async def test_a_worker_that_dies_is_started_again(settings: Settings, crew: Crew) -> None:
    async with Supervised(2, settings) as supervised:
        await consuming(supervised, crew, processes=2)
        dying, living = supervised.pids
        os.kill(dying, signal.SIGKILL)
        await supervised.logged("worker_process_started", times=3)
        *_, new = supervised.pids

        async def both_there() -> bool:
            return await members(crew) == {living, new}

        await eventually(both_there)


async def test_one_that_keeps_dying_is_started_again_after_longer_and_longer(settings: Settings) -> None:
    async with Supervised(2, settings) as supervised:
        for deaths in (1, 2):
            await supervised.logged("worker_process_started", times=deaths + 1)
            os.kill(supervised.pids[0 if deaths == 1 else -1], signal.SIGKILL)
            await supervised.logged("worker_died", times=deaths)
        assert [event["wait_seconds"] for event in supervised.events("worker_died")] == [1, 2]


async def test_a_broker_that_is_away_when_one_dies_is_no_mistake_in_the_set_up(settings: Settings, crew: Crew) -> None:
    async with Cable(settings.amqp_url.get_secret_value()) as cable:
        by_cable = settings.model_copy(update={"amqp_url": SecretStr(cable.url)})
        async with Supervised(2, by_cable) as supervised:
            await consuming(supervised, crew, processes=2)
            dying, living = supervised.pids
            cable.cut()
            os.kill(dying, signal.SIGKILL)
            await supervised.logged("worker_died", times=2)
            cable.plug_in()
            await supervised.logged("worker_started", times=3)

            async def both_there() -> bool:
                return await members(crew) == {living, supervised.pids[-1]}

            await eventually(both_there)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=lambda told: told.name)
async def test_told_to_stop_it_has_all_its_workers_drain_and_exits_0(
    settings: Settings,
    broker: TestBroker,
    database: asyncpg.Connection,
    gates: Gates,
    crew: Crew,
    *,
    told: signal.Signals,
) -> None:
    async with Supervised(2, settings, gates) as supervised:
        await consuming(supervised, crew, processes=2)
        run_id = await ask_a_turn_that_is_held(broker, gates)
        supervised.process.send_signal(told)
        await supervised.logged("worker_draining", times=2)
        gates.open("gate")
        assert await supervised.exited() == 0
        await supervised.all_ended()
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == [run_id]


async def test_told_twice_it_waits_for_no_turn(
    settings: Settings, broker: TestBroker, gates: Gates, crew: Crew
) -> None:
    async with Supervised(2, settings, gates, TEAMTURN_DRAIN_TIMEOUT="600") as supervised:
        await consuming(supervised, crew, processes=2)
        await ask_a_turn_that_is_held(broker, gates)
        supervised.terminate()
        await supervised.logged("worker_draining", times=2)
        supervised.terminate()
        await supervised.exited(seconds=10)
        await supervised.all_ended(seconds=1)


async def test_told_to_stop_while_a_worker_is_to_be_started_again_it_starts_none(settings: Settings) -> None:
    async with Supervised(2, settings) as supervised:
        await supervised.logged("worker_started", times=2)
        os.kill(supervised.pids[0], signal.SIGKILL)
        await supervised.logged("worker_died")
        supervised.terminate()
        await supervised.exited()
        assert len(supervised.pids) == 2


async def test_when_it_is_killed_its_workers_drain(
    settings: Settings, broker: TestBroker, database: asyncpg.Connection, gates: Gates, crew: Crew
) -> None:
    async with Supervised(2, settings, gates) as supervised:
        await consuming(supervised, crew, processes=2)
        run_id = await ask_a_turn_that_is_held(broker, gates)
        supervised.kill()
        await eventually(lambda: len(supervised.events("worker_draining")) == 2)
        gates.open("gate")
        await supervised.all_ended()
        assert len(supervised.events("worker_stopped")) == 2
    assert [run["run_id"] for run in await stored_runs(database, "s1")] == [run_id]


async def test_a_mistake_in_the_set_up_ends_it_with_exit_code_2_and_one_line(settings: Settings) -> None:
    environment = environment_of(settings, TEAMTURN_TEAMS="no_such_module:teams", **QUICKER)
    code, _, err = await run_command("worker", "--processes", "2", environment=environment, cwd=DATA)
    assert code == MISTAKE
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, err
    assert "no_such_module" in lines[0]


async def test_a_mistake_that_shows_only_at_the_servers_ends_it_with_exit_code_2_and_one_line(
    settings: Settings, crew: Crew
) -> None:
    async with Crew(settings) as others:
        await others.hire()
        environment = environment_of(
            settings.model_copy(update={"prefetch": settings.prefetch + 1}), TEAMTURN_TEAMS=TEAMS, **QUICKER
        )
        code, _, err = await run_command("worker", "--processes", "2", environment=environment, cwd=DATA)
        assert len((await crew.state()).workers) == 1, "the others go on"
    assert code == MISTAKE
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, err
    assert "TEAMTURN_PREFETCH" in lines[0]
