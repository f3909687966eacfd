"""Mailboxes under any order of events, beside a model of what the contract says of them.

The machine is the broker, too: it keeps each partition's requests until they are acknowledged, and when a channel dies
it delivers them again, in order, on a new one. Events can come closely: several before anything here goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from schemas.errors import ErrorCode
from tests.unit.examples import a_request_delivery, everything_that_can_run
from worker.errors import RequestRefused
from worker.intake import mailbox
from worker.intake.delivery import ChannelLife, Delivery, RequestDelivery
from worker.intake.mailbox import Mailboxes

_PARTITION = {"s1": 0, "s2": 0, "s3": 1}
"""The sessions, and in which partition each is."""
_ERRORS = [LookupError, asyncio.CancelledError, SystemExit]
"""What users' code raises; not because the worker stops."""
_SELDOM = st.sampled_from([False, False, True])
"""Whether the next event comes before anything goes on, or the mailboxes are told at once."""
_MOST_TRIES = len(mailbox._RETRY_SECONDS)


@dataclass
class _Channel:
    """A channel, and whether it is alive in the model."""

    life: ChannelLife = field(default_factory=ChannelLife)
    alive: bool = True


@dataclass
class _Entry:
    """The model of a request in a mailbox."""

    run_id: str
    channel: _Channel
    begun: bool = False
    failures: int = 0
    over: bool = False
    """Whether its end was said: it has been taken, or has failed for the last time."""


@dataclass
class _Partition:
    """The model of a partition: what is not acknowledged, in order, and the channel on which it is delivered."""

    unacknowledged: list[tuple[str, str]] = field(default_factory=list)
    channel: _Channel = field(default_factory=_Channel)


class MailboxMachine(RuleBasedStateMachine):
    """Deliveries, turns that end or fail, and lost channels whose requests come again."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.partitions = [_Partition() for _ in set(_PARTITION.values())]
        self.boxes: dict[str, list[_Entry]] = {session: [] for session in _PARTITION}
        self.published: dict[str, list[str]] = {session: [] for session in _PARTITION}
        self.drains: list[asyncio.Task[None]] = []
        self.expected_drains: list[bool] = []
        self.expected_taken: Counter[str] = Counter()
        self.expected_buried: Counter[str] = Counter()
        self.events: list[Callable[[], object]] = []
        """What the model knows of already, and the mailboxes do not."""

        self.running: dict[str, str] = {}
        self.ends: dict[str, asyncio.Future[type[BaseException] | None]] = {}
        self.begun: dict[str, list[str]] = defaultdict(list)
        self.taken: Counter[str] = Counter()
        self.buried: Counter[str] = Counter()
        self.mistakes: list[str] = []
        self.mailboxes = Mailboxes(self.take, self.bury)

    # --- what the mailboxes are given ---

    async def take(self, received: RequestDelivery) -> None:
        run_id, session_id = received.request.run_id, received.request.session_id
        if session_id in self.running:
            self.mistakes.append(f"{run_id} is taken while {self.running[session_id]} of its session runs")
        self.running[session_id] = run_id
        self.begun[session_id].append(run_id)
        self.ends[session_id] = asyncio.get_running_loop().create_future()
        try:
            error = await self.ends[session_id]
        finally:
            self.running.pop(session_id, None)
        if error is not None:
            raise error
        self.taken[run_id] += 1

    def bury(self, delivery: Delivery, refusal: RequestRefused) -> None:
        if refusal.code is not ErrorCode.INTERNAL_ERROR or refusal.request is None or not delivery.source:
            self.mistakes.append(f"buried with {refusal.code}")
            return
        self.buried[refusal.request.run_id] += 1

    # --- what happens ---

    @rule(sessions=st.lists(st.sampled_from(sorted(_PARTITION)), min_size=1, max_size=3), closely=_SELDOM)
    def publish(self, sessions: list[str], closely: bool) -> None:  # noqa: FBT001 - drawn
        for session in sessions:
            partition = self.partitions[_PARTITION[session]]
            run_id = f"{session}-{len(self.published[session])}"
            self.published[session].append(run_id)
            partition.unacknowledged.append((run_id, session))
            if partition.channel.alive:
                self.deliver(run_id, session, partition.channel)
        self.go_on(closely=closely)

    @precondition(lambda self: self.to_be_ended())
    @rule(data=st.data(), times=st.integers(1, 4), closely=_SELDOM)
    def end_turns(self, data: st.DataObject, times: int, closely: bool) -> None:  # noqa: FBT001 - drawn
        """Turns of a session end, one after the other."""
        session = data.draw(st.sampled_from(self.to_be_ended()))
        self.end_a_turn(session)
        for _ in range(times - 1):
            self.go_on(closely=False)
            if session in self.to_be_ended():
                self.end_a_turn(session)
        self.go_on(closely=closely)

    @precondition(lambda self: self.to_be_ended())
    @rule(data=st.data(), error=st.sampled_from(_ERRORS), times=st.integers(1, _MOST_TRIES))
    def fail_a_turn(self, data: st.DataObject, error: type[BaseException], times: int) -> None:
        """A turn fails in a way that was not foreseen, so many times."""
        session = data.draw(st.sampled_from(self.to_be_ended()))
        entry = self.boxes[session][0]
        for _ in range(times):
            entry.failures += 1
            if entry.failures == _MOST_TRIES:
                self.expected_buried[entry.run_id] += 1
                self.is_over(session, entry)
            self.events.append(partial(self.ends[session].set_result, error))
            self.go_on(closely=False)
            if entry.over:
                return

    @rule(number=st.sampled_from(sorted(set(_PARTITION.values()))), told=_SELDOM, closely=_SELDOM)
    def lose_a_channel(self, number: int, told: bool, closely: bool) -> None:  # noqa: FBT001 - drawn
        """The mailboxes are told at once, or not yet."""
        self.lose(self.partitions[number])
        if told:
            self.forget()
        self.go_on(closely=closely)

    @rule(closely=_SELDOM)
    def forget_dead(self, closely: bool) -> None:  # noqa: FBT001 - drawn
        self.forget()
        self.go_on(closely=closely)

    @precondition(lambda self: not all(partition.channel.alive for partition in self.partitions))
    @rule(closely=_SELDOM)
    def consume_again(self, closely: bool) -> None:  # noqa: FBT001 - drawn
        """What is unacknowledged comes again, in order, and behind it what was published meanwhile."""
        for partition in self.partitions:
            if not partition.channel.alive:
                partition.channel = _Channel()
                for run_id, session in partition.unacknowledged:
                    self.deliver(run_id, session, partition.channel)
        self.go_on(closely=closely)

    @rule()
    def drain(self) -> None:
        self.expected_drains.append(False)
        self.events.append(lambda: self.drains.append(asyncio.create_task(self.mailboxes.drained())))
        self.go_on(closely=False)

    # --- what must be true ---

    @invariant()
    def the_head_of_each_session_runs_and_nothing_else(self) -> None:
        assert not self.mistakes
        if not self.events:
            assert self.running == {session: box[0].run_id for session, box in self.boxes.items() if box}
            assert len(self.mailboxes) == sum(len(box) for box in self.boxes.values())
            assert self.taken == self.expected_taken
            assert self.buried == self.expected_buried
            assert [task.done() for task in self.drains] == self.expected_drains

    @invariant()
    def no_request_is_begun_before_one_that_was_published_earlier(self) -> None:
        for session, run_ids in self.published.items():
            first = list(dict.fromkeys(self.begun[session]))
            assert first == run_ids[: len(first)]

    @override
    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.go_on(closely=False)
            self.stop()
            self.everything_is_answered_in_the_end()
        finally:
            self.runner.close()

    def stop(self) -> None:
        """Stop, with turns running and others waiting: nothing is begun any more."""

        async def stop() -> None:
            async with asyncio.timeout(10):
                await self.mailboxes.stop()

        begun = {session: list(run_ids) for session, run_ids in self.begun.items()}
        self.runner.run(stop())
        assert (len(self.mailboxes), self.running, self.begun) == (0, {}, begun)
        assert self.taken == self.expected_taken
        assert self.buried == self.expected_buried

    def everything_is_answered_in_the_end(self) -> None:
        """The next worker is given what is unacknowledged; with it, nothing that was published is left out."""
        self.boxes = {session: [] for session in _PARTITION}
        for partition in self.partitions:
            self.lose(partition)
        self.consume_again(closely=False)
        while sessions := self.to_be_ended():
            self.end_a_turn(sessions[0])
            self.go_on(closely=False)
        answered = self.taken.keys() | self.buried.keys()
        assert answered == {run_id for run_ids in self.published.values() for run_id in run_ids}
        self.no_request_is_begun_before_one_that_was_published_earlier()

    # --- the model ---

    def deliver(self, run_id: str, session: str, channel: _Channel) -> None:
        self.events.append(lambda: self.mailboxes.put(a_request_delivery(run_id, session, life=channel.life)))
        self.boxes[session].append(_Entry(run_id, channel))

    def lose(self, partition: _Partition) -> None:
        self.events.append(partition.channel.life.end)
        partition.channel.alive = False

    def forget(self) -> None:
        self.events.append(self.mailboxes.forget_dead)
        for box in self.boxes.values():
            box[1:] = [entry for entry in box[1:] if entry.channel.alive]

    def end_a_turn(self, session: str) -> None:
        entry = self.boxes[session][0]
        self.expected_taken[entry.run_id] += 1
        self.is_over(session, entry)
        self.events.append(partial(self.ends[session].set_result, None))

    def to_be_ended(self) -> list[str]:
        """The sessions with a turn that runs, and whose end was not said yet."""
        return sorted(session for session, box in self.boxes.items() if box and box[0].begun and not box[0].over)

    def is_over(self, session: str, entry: _Entry) -> None:
        """Its end is said; and it is acknowledged, if that is still possible."""
        entry.over = True
        if entry.channel.alive:
            self.partitions[_PARTITION[session]].unacknowledged.remove((entry.run_id, session))

    def go_on(self, *, closely: bool) -> None:
        """Let the mailboxes know what has happened, and go on as far as they can; or not yet."""
        if closely:
            return

        async def step() -> None:
            for event in self.events:
                event()
            await everything_that_can_run()

        self.runner.run(step())
        self.events.clear()
        for box in self.boxes.values():
            while box and (box[0].over or not (box[0].begun or box[0].channel.alive)):
                box.pop(0)
            if box:
                box[0].begun = True
        if not any(self.boxes.values()):
            self.expected_drains = [True] * len(self.expected_drains)


@pytest.fixture(autouse=True)
def _retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_RETRY_SECONDS", (0.0,) * _MOST_TRIES)


@pytest.mark.timeout(400)  # where it fails, the shortest way there is looked for
def test_in_any_order_of_events_each_session_s_head_runs_and_no_request_is_lost_or_overtaken() -> None:
    run_state_machine_as_test(MailboxMachine, settings=settings(max_examples=300, stateful_step_count=30))
