"""Wiring: the one place where a worker's objects are built, started and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TypeVar

import sql
from schemas.control import CancelRequest
from worker.broker import connected
from worker.errors import BrokerUnavailable, StartupError, StoreUnavailable
from worker.executors.registry import Executors
from worker.fleet.agreement import agree
from worker.fleet.fleet import Fleet
from worker.fleet.membership import Membership
from worker.fleet.readings import FleetReadings
from worker.intake.control import Control
from worker.intake.forwarding import Forwarder
from worker.intake.intake import Intake
from worker.intake.mailbox import Mailboxes
from worker.intake.partitions import Consumers
from worker.intake.topology import Topology, check_partitions, ensure
from worker.operations import tracing
from worker.operations.gauges import Gauges
from worker.operations.loop_lag import measure_loop_lag
from worker.operations.metrics import Metrics
from worker.replies.direct import DirectReplies
from worker.replies.events import EventPublisher
from worker.replies.in_order import RepliesInOrder
from worker.replies.publisher import Publisher
from worker.replies.replies import ReplyAddresses, ReplyPublisher
from worker.sessions.database import DRIVER_ERRORS, application_name, connect, worker_name
from worker.sessions.migrations import migrate, require_current
from worker.sessions.statements import Cancellation
from worker.sessions.store import SessionStore
from worker.sessions.summaries import Summaries
from worker.settings import Settings
from worker.turn import TurnTaker
from worker.turns.busy import BusySessions
from worker.turns.ending import Ending
from worker.turns.running import RunningRuns
from worker.worker import Worker

_T = TypeVar("_T")


@asynccontextmanager
async def running_worker(settings: Settings, executors: Executors, *, migrating: bool) -> AsyncIterator[Worker]:
    """Build and start a worker for the block. Raises StartupError for whatever an operator must mend first."""
    topology = Topology(prefix=settings.prefix, partitions=settings.partitions)
    locks = await _as_startup(_prepare(settings, topology, migrating=migrating))
    async with AsyncExitStack() as stack:
        if tracing.installed():
            stack.enter_context(_models_traced(settings))
        metrics = Metrics(executors)
        sessions = SessionStore(settings.postgres_url, settings.db_schema, locks=locks, measures=metrics)
        publisher_named = partial(_publisher, settings, topology, metrics)
        results = publisher_named("results")
        # Apart from the results: a queue that a producer named can leave a reply unconfirmed.
        addressed = publisher_named("replies")
        # Opened when they are needed: an address that a producer made up can make the broker close the connection.
        direct = DirectReplies(publisher_named("direct replies"), publisher_named("direct replies one by one"))
        stack.push_async_callback(direct.close)
        forwarding = publisher_named("forwarding")
        replies = ReplyPublisher(
            results,
            addressed,
            direct,
            topology,
            ReplyAddresses(settings.prefix, settings.reply_to_pattern),
            largest_bytes=settings.max_request_bytes,
            schema=settings.db_schema,
        )
        forwarder = Forwarder(forwarding, topology, replies.answer_refused, measures=metrics)
        summaries = Summaries(sessions)
        answers = RepliesInOrder(replies, metrics)
        events = EventPublisher(settings.amqp_url, topology, name=application_name("events"))
        running = RunningRuns(sessions)
        ending = Ending(settings.db_schema, metrics, content_logged=settings.log_content)
        busy = BusySessions(sessions, executors, answers, ending, events.publish)
        taker = TurnTaker(
            *(sessions, executors, answers, summaries, settings),
            running=running,
            ending=ending,
            publish=events.publish,
            bury=forwarder.keep_dead,
            measures=metrics,
        )
        mailboxes = Mailboxes(taker.take, forwarder.bury, busy.came)
        intake = Intake(topology, mailboxes, forwarder, largest_bytes=settings.max_request_bytes, measures=metrics)
        consumers = Consumers(
            settings.amqp_url,
            topology,
            prefetch=settings.prefetch,
            received=intake.received,
            lost=mailboxes.forget_dead,
            name=application_name("intake"),
            measures=metrics,
        )
        control = Control(lambda said: sessions.cancel(_cancellation(said)), forwarder.bury)
        controlling = _consumers_of_control(settings, topology, control)
        membership = Membership(sessions.first_lane, settings)
        fleet = Fleet(membership, consumers, topology, sessions)
        fleet_readings = FleetReadings(settings.postgres_url, settings.db_schema, settings.prefix)
        await _as_startup(sessions.open())
        for publisher in (results, addressed, forwarding):
            await _as_startup(publisher.open())
            stack.push_async_callback(publisher.close)
        tasks = {
            "lanes": sessions.run(),
            "forwarder": forwarder.run(),
            "cancelling": running.run(),
            "events": events.run(),
            "fleet readings": fleet_readings.run(),
            "loop lag": measure_loop_lag(metrics),
        }
        background = tuple(_owned(stack, asyncio.create_task(task, name=name)) for name, task in tasks.items())
        # Stopped before the lanes: what still runs then ends without a commit, and is delivered elsewhere.
        stack.push_async_callback(summaries.stop)
        stack.push_async_callback(answers.stop)
        stack.push_async_callback(mailboxes.stop)
        stack.push_async_callback(busy.stop)
        stack.push_async_callback(control.stop)
        listening = _owned(stack, asyncio.create_task(controlling.run(), name="control"))
        consuming = _owned(stack, asyncio.create_task(consumers.run(), name="intake"))
        following = _owned(stack, asyncio.create_task(fleet.run(), name="fleet"))
        worker = Worker(
            mailboxes=mailboxes,
            replies=answers,
            summaries=summaries,
            sessions=sessions,
            publishers=(results, addressed, forwarding),
            consumers=consumers,
            fleet=fleet,
            running=running,
            fleet_readings=fleet_readings,
            metrics=metrics,
            consuming=(consuming, following, listening),
            background=background,
            settings=settings,
        )
        metrics.registry.register(Gauges(worker.reading, version=version("teamturn"), worker=worker_name()))
        yield worker


def _publisher(settings: Settings, topology: Topology, metrics: Metrics, name: str) -> Publisher:
    return Publisher(settings.amqp_url, topology, name=application_name(name), measures=metrics)


def _models_traced(settings: Settings) -> AbstractContextManager[None]:
    # A worker of plain functions needs no model libraries.
    from worker.team.instrumentation import models_traced  # noqa: PLC0415

    return models_traced(content=settings.trace_content)


def _consumers_of_control(settings: Settings, topology: Topology, control: Control) -> Consumers:
    """Return what brings control messages in, over a connection of its own: requests may keep theirs busy."""
    consumers = Consumers(
        settings.amqp_url,
        topology,
        prefetch=settings.prefetch,
        received=control.received,
        lost=lambda: None,
        name=application_name("control"),
        announced=False,
    )
    consumers.want(frozenset({topology.control}))
    return consumers


def _cancellation(said: CancelRequest) -> Cancellation:
    return Cancellation(said.run_id, said.session_id, said.user_id)


async def _prepare(settings: Settings, topology: Topology, *, migrating: bool) -> int:
    """See that schema, fleet settings and topology are as this worker needs them; return how many locks there are."""
    database = await connect(
        settings.postgres_url, settings.db_schema, application=application_name("start"), writes=True
    )
    try:
        if migrating:
            await migrate(database, settings.db_schema)
        await require_current(database, settings.db_schema)
        first_start = await agree(database, settings)
        locks = int(await database.fetchval(sql.LOCK_TABLE))
    except DRIVER_ERRORS as error:
        raise StoreUnavailable(f"the connection to Postgres was lost ({error})") from error
    finally:
        await database.close()
    async with connected(settings.amqp_url, name=application_name("start")) as broker:
        if first_start:
            # Postgres is new to the prefix, RabbitMQ may not be.
            await check_partitions(broker.amqp, topology)
        await ensure(broker.amqp, topology)
    return locks


async def _as_startup(starting: Awaitable[_T]) -> _T:
    """Await a part of the start: a server that is away then is for the operator to mend."""
    try:
        return await starting
    except (BrokerUnavailable, StoreUnavailable) as error:
        raise StartupError(str(error)) from error


def _owned(stack: AsyncExitStack, task: asyncio.Task[None]) -> asyncio.Task[None]:
    """Have the stack cancel the task at its end, and wait for it."""

    async def stop() -> None:
        task.cancel()
        # What it ended with was raised where it is watched; here it must only be gone.
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)
    return task
