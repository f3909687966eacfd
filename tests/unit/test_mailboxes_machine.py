"""Mailboxes under any order of events, beside a model of what the contract says of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

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

from tests.unit.examples import a_request_delivery, everything_that_can_run
from worker.intake.delivery import ChannelLife, RequestDelivery
from worker.intake.mailbox import Mailboxes

_SESSIONS = st.sampled_from(["s1", "s2", "s3"])


@dataclass
class _Expected:
    """The model: what each session's mailbox holds, the first of it running; and what the broker still holds."""

    boxes: dict[str, list[tuple[str, ChannelLife]]] = field(default_factory=lambda: defaultdict(list))
    unacknowledged: list[tuple[str, str]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)

    @property
    def running(self) -> dict[str, str]:
        return {session: box[0][0] for session, box in self.boxes.items() if box}


class MailboxMachine(RuleBasedStateMachine):
    """Deliveries, ends of turns, and lost channels whose requests come again in order."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.expected = _Expected()
        self.running: dict[str, str] = {}
        self.finished: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.life = ChannelLife()
        self.count = 0
        self.mailboxes = Mailboxes(self.take, lambda *_: None)

    async def take(self, received: RequestDelivery) -> None:
        run_id, session_id = received.request.run_id, received.request.session_id
        assert session_id not in self.running, "two turns of one session at once"
        self.running[session_id] = run_id
        end = self.ends[session_id] = asyncio.Event()
        try:
            await end.wait()
        finally:
            del self.running[session_id]
        self.finished.append(run_id)

    def do(self, *deliveries: tuple[str, str]) -> None:
        """Deliver some requests, and let everything go on as far as it can."""

        async def step() -> None:
            for run_id, session_id in deliveries:
                self.mailboxes.put(a_request_delivery(run_id, session_id, life=self.life))
                self.expected.boxes[session_id].append((run_id, self.life))
            await everything_that_can_run()

        self.runner.run(step())

    @rule(session=_SESSIONS)
    def deliver(self, session: str) -> None:
        self.count += 1
        delivered = (f"r{self.count}", session)
        self.expected.unacknowledged.append(delivered)
        self.do(delivered)

    @precondition(lambda self: self.expected.running)
    @rule(data=st.data())
    def end_a_turn(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.expected.running)))
        run_id, life = self.expected.boxes[session].pop(0)
        self.expected.finished.append(run_id)
        if life.alive:
            self.expected.unacknowledged.remove((run_id, session))
        self.ends[session].set()
        self.do()

    @rule()
    def lose_the_channel(self) -> None:
        self.life.end()
        self.life = ChannelLife()
        self.mailboxes.forget_dead()
        for session, box in self.expected.boxes.items():
            self.expected.boxes[session] = box[:1] + [waiting for waiting in box[1:] if waiting[1].alive]
        self.do()

    @precondition(lambda self: not any(life.alive for box in self.expected.boxes.values() for _, life in box))
    @rule()
    def deliver_again_what_is_unacknowledged(self) -> None:
        self.do(*self.expected.unacknowledged)

    @invariant()
    def the_head_of_each_session_runs_and_nothing_else(self) -> None:
        assert self.running == self.expected.running
        assert len(self.mailboxes) == sum(len(box) for box in self.expected.boxes.values())
        assert self.finished == self.expected.finished

    @override
    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        self.runner.run(self.mailboxes.stop())
        assert len(self.mailboxes) == 0
        assert not self.running
        self.runner.close()


def test_in_any_order_of_events_each_session_s_head_runs_and_no_request_is_lost_or_overtaken() -> None:
    run_state_machine_as_test(MailboxMachine, settings=settings(max_examples=40, stateful_step_count=30))
