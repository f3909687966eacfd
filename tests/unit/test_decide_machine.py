"""Decide, beside a model of what is stored: any requests, in any order, and whatever else happens to the store.

The machine does what `decide` says, as the worker does: what is executed leaves a session, a run and a receipt, what is
refused a receipt or nothing. What must hold is said a second time, in other words, in the model's own `reasons`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

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

from schemas.errors import ErrorCode
from schemas.ids import SessionType, Target
from schemas.requests import RunRequest
from tests.unit.examples import NOW, a_claim, a_receipt, a_request, a_session, agent, team
from worker import decide as deciding
from worker.decide import Cancel, Decision, Execute, Refuse, Replay, decide
from worker.sessions.claim import Claim, Receipt, SessionRow

_LARGEST_BYTES = 20
"""Of a session's state and metadata: one of the values below fits, two do not."""
_USERS = [None, "user-ann", "user-bob", "user-eve"]
_SESSIONS = ["session-1", "session-2", "session-3"]
_TARGETS = [team("target-x"), team("target-y"), agent("target-x")]
_PROPERTIES = [*[None] * 10, "expiration", "priority"]
_OBJECTS = [{}, {"a": "1234567"}, {"b": "1234567"}, {"c": "1234567"}]
_GROWING = ["session_state", "metadata"]
_CONTENT: dict[str, list[Any]] = {
    "input": ["hello", "hi", [{"type": "text", "text": "hello"}]],
    "session_state": _OBJECTS,
    "metadata": _OBJECTS,
    "deadline": [None, None, *((NOW + timedelta(minutes=minutes)).isoformat() for minutes in (0, 5, 10))],
    "on_busy": ["enqueue", "enqueue", "reject", "interrupt", "coalesce"],
    "stream": [False, False, False, True],
}


def _contents() -> st.SearchStrategy[str]:
    """Two fields at most are otherwise than they mostly are: with more, little would be executed."""
    fields = st.one_of([st.tuples(st.just(name), st.sampled_from(values)) for name, values in _CONTENT.items()])
    return st.lists(fields, max_size=2).map(lambda found: json.dumps({"input": "hello", **dict(found)}))


@dataclass(frozen=True)
class Asked:
    """What a producer sends under a run_id, apart from the AMQP property that it sets with it."""

    run_id: str
    session_id: str
    user_id: str | None
    target: Target
    content: str
    """The other fields, as JSON."""

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found

    @property
    def request(self) -> RunRequest:
        mine = {"run_id": self.run_id, "session_id": self.session_id, "user_id": self.user_id, "team_id": ...}
        return a_request(**mine | {f"{self.target.type.value}_id": self.target.id} | self.fields)


@dataclass
class Store:
    """What is stored, and what else a claim finds."""

    now: datetime = NOW
    sessions: dict[str, SessionRow] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    """The session of each run."""
    attempts: dict[str, int] = field(default_factory=dict)
    cancelled: set[tuple[str, str, str | None]] = field(default_factory=set)
    """What was said to be cancelled: run, session and user."""

    def claim(self, asked: Asked) -> Claim:
        return a_claim(
            database_time=self.now,
            receipt=self.receipts.get(asked.run_id),
            run_exists=asked.run_id in self.runs,
            session=self.sessions.get(asked.session_id),
            attempts=self.attempts.get(asked.run_id, 0),
            cancelled=(asked.run_id, asked.session_id, asked.user_id) in self.cancelled,
        )

    def keep_answer(self, asked: Asked, reply: bytes) -> None:
        assert asked.run_id not in self.receipts, "a receipt never changes"
        self.receipts[asked.run_id] = a_receipt(asked.request, reply=reply)
        self.attempts.pop(asked.run_id, None)

    def commit(self, asked: Asked, reply: bytes) -> None:
        """Store a turn. The session is checked by nobody here: that is for decide."""
        assert asked.run_id not in self.runs, "no run is stored twice"
        self.keep_answer(asked, reply)
        self.runs[asked.run_id] = asked.session_id
        new = a_session(user_id=asked.user_id, session_type=asked.target.type, target_id=asked.target.id, turn_seq=0)
        session = self.sessions.get(asked.session_id, new)
        self.sessions[asked.session_id] = replace(
            session,
            session_state=session.session_state | asked.fields.get("session_state", {}),
            metadata=session.metadata | asked.fields.get("metadata", {}),
            turn_seq=session.turn_seq + 1,
        )


_FOREIGN = {
    ErrorCode.RUN_ID_CONFLICT,
    ErrorCode.UNSUPPORTED_PROPERTY,
    ErrorCode.SESSION_FORBIDDEN,
    ErrorCode.SESSION_TARGET_MISMATCH,
}
"""Why somebody may not ask at all, which goes before everything else."""


class DecideMachine(RuleBasedStateMachine):
    """Requests of several users in several sessions: new ones, the same again, and the same run_id with another."""

    @initialize()
    def start(self) -> None:
        self.store = Store()
        self.known = set(_TARGETS)
        self.asked: list[Asked] = []
        self.answers: dict[str, tuple[Asked, bytes]] = {}
        """Of each run_id, who got the first answer that is kept, and which."""
        self.executed: dict[str, Asked] = {}
        self.owners: dict[str, tuple[str | None, str, str]] = {}
        """Of each session, whose and which target's it was when it began."""
        self.conflicts: set[Refuse] = set()

    # --- what is asked ---

    @rule(
        session_id=st.sampled_from(_SESSIONS),
        owner=st.tuples(st.sampled_from(_USERS), st.sampled_from(_TARGETS)),
        content=_contents(),
        forbidden=st.sampled_from(_PROPERTIES),
        dies=st.booleans(),
    )
    def ask(
        self,
        session_id: str,
        owner: tuple[str | None, Target],
        content: str,
        forbidden: str | None,
        dies: bool,  # noqa: FBT001 - drawn
    ) -> None:
        """Ask as anybody for anything: in a session that has begun, mostly somebody else's."""
        self.take(self.new(session_id, *owner, content), forbidden, dies=dies)

    @rule(
        session_id=st.sampled_from(_SESSIONS),
        content=_contents(),
        forbidden=st.sampled_from(_PROPERTIES),
        dies=st.booleans(),
    )
    def ask_as_the_owner(
        self,
        session_id: str,
        content: str,
        forbidden: str | None,
        dies: bool,  # noqa: FBT001 - drawn
    ) -> None:
        """Ask in a session of one's own, so that more comes to be executed."""
        self.take(self.new_of_the_owner(session_id, content), forbidden, dies=dies)

    @rule(session_id=st.sampled_from(_SESSIONS), name=st.sampled_from(_GROWING), value=st.sampled_from(_OBJECTS))
    def ask_for_more_to_be_kept(self, session_id: str, name: str, value: dict[str, Any]) -> None:
        asked = self.new_of_the_owner(session_id, json.dumps({"input": "hello", name: value}))
        self.take(asked, None, dies=False)

    @rule(session_id=st.sampled_from(_SESSIONS), minutes=st.sampled_from([-1, 0, 1, 2]), dies=st.booleans())
    def ask_with_little_time(self, session_id: str, minutes: int, dies: bool) -> None:  # noqa: FBT001 - drawn
        self.take(self.new_of_the_owner(session_id, self.in_time(minutes)), None, dies=dies)

    @rule(session_id=st.sampled_from(_SESSIONS), minutes=st.sampled_from([-1, 0, 1, 2]))
    def ask_as_a_stranger_with_little_time(self, session_id: str, minutes: int) -> None:
        self.take(self.new(session_id, "user-eve", _TARGETS[0], self.in_time(minutes)), None, dies=True)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), forbidden=st.sampled_from(_PROPERTIES))
    def ask_the_same_again(self, data: st.DataObject, forbidden: str | None) -> None:
        self.take(data.draw(st.sampled_from(self.asked)), forbidden, dies=False)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), forbidden=st.sampled_from(_PROPERTIES))
    def ask_something_else_under_a_run_id_of_before(self, data: st.DataObject, forbidden: str | None) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        which = data.draw(st.sampled_from(["session_id", "user_id", "target", *_CONTENT]))
        others: dict[str, Any] = {"session_id": _SESSIONS, "user_id": _USERS, "target": _TARGETS}
        if which in others:
            asked = replace(asked, **{which: data.draw(st.sampled_from(others[which]))})
        else:
            content = asked.fields | {which: data.draw(st.sampled_from(_CONTENT[which]))}
            asked = replace(asked, content=json.dumps(content))
        self.asked.append(asked)
        self.take(asked, forbidden, dies=False)

    def in_time(self, minutes: int) -> str:
        return json.dumps({"input": "hello", "deadline": (self.store.now + timedelta(minutes=minutes)).isoformat()})

    def new(self, session_id: str, user_id: str | None, target: Target, content: str) -> Asked:
        asked = Asked(f"run-{len(self.asked)}", session_id, user_id, target, content)
        self.asked.append(asked)
        return asked

    def new_of_the_owner(self, session_id: str, content: str) -> Asked:
        user_id, kind, target_id = self.owners.get(session_id, ("user-ann", "team", "target-x"))
        return self.new(session_id, user_id, Target(type=SessionType(kind.lower()), id=target_id), content)

    # --- what happens beside that ---

    @rule(minutes=st.integers(1, 6))
    def time_passes(self, minutes: int) -> None:
        self.store.now += timedelta(minutes=minutes)

    @rule(data=st.data(), user_id=st.sampled_from(_USERS), session_id=st.sampled_from(_SESSIONS))
    def a_run_is_cancelled(self, data: st.DataObject, user_id: str | None, session_id: str) -> None:
        """By whomever: one that was asked for, or the next one."""
        number = data.draw(st.integers(0, len(self.asked)))
        self.store.cancelled.add((f"run-{number}", session_id, user_id))

    @rule(which=st.sampled_from(_TARGETS[1:]))
    def other_teams_are_deployed(self, which: Target) -> None:
        self.known ^= {which}

    @precondition(lambda self: self.store.sessions)
    @rule(data=st.data())
    def a_session_is_deleted(self, data: st.DataObject) -> None:
        """With its runs; what answers a redelivery stays."""
        session_id = data.draw(st.sampled_from(sorted(self.store.sessions)))
        del self.store.sessions[session_id]
        self.owners.pop(session_id, None)
        self.store.runs = {run: where for run, where in self.store.runs.items() if where != session_id}
        self.forget_what_nothing_tells_of()

    @precondition(lambda self: self.store.receipts)
    @rule(data=st.data())
    def a_receipt_is_pruned(self, data: st.DataObject) -> None:
        """From here on the request is a new one; unless its run is still stored."""
        run_id = data.draw(st.sampled_from(sorted(self.store.receipts)))
        del self.store.receipts[run_id]
        del self.answers[run_id]
        self.forget_what_nothing_tells_of()

    @rule(
        session_id=st.sampled_from(_SESSIONS), user_id=st.sampled_from(_USERS), kind=st.sampled_from(["team", "TEAM"])
    )
    def another_program_writes_a_run(self, session_id: str, user_id: str | None, kind: str) -> None:
        """Under a run_id that somebody asks with later, and in a session that it may have begun."""
        self.store.runs.setdefault(f"run-{len(self.asked) + 1}", session_id)
        if session_id not in self.store.sessions:
            self.store.sessions[session_id] = a_session(user_id=user_id, session_type=kind, target_id="target-x")
            self.owners[session_id] = (user_id, kind, "target-x")

    def forget_what_nothing_tells_of(self) -> None:
        kept = self.store.receipts.keys() | self.store.runs.keys()
        self.executed = {run_id: asked for run_id, asked in self.executed.items() if run_id in kept}

    # --- what the worker does, and what must hold of it ---

    def take(self, asked: Asked, forbidden: str | None, *, dies: bool) -> None:
        """Decide about a request, and do what was decided; where it dies, its worker does so before the commit."""
        known = asked.target in self.known
        claim = self.store.claim(asked)
        decision = decide(asked.request, claim, target_known=known, forbidden_property=forbidden)
        self.expect(decision, asked, forbidden)
        match decision:
            case Execute() if dies:
                self.store.attempts[asked.run_id] = claim.attempts + 1
            case Execute():
                self.executed[asked.run_id] = asked
                self.owners.setdefault(asked.session_id, _owner(asked))
                self.answered(asked, self.a_reply(asked), self.store.commit)
            case Refuse(stored=True) | Cancel():
                self.answered(asked, self.a_reply(asked), self.store.keep_answer)
            case Refuse():
                self.conflicts.add(decision)
            case Replay():
                pass

    def expect(self, decision: Decision, asked: Asked, forbidden: str | None) -> None:
        """Judge a decision by what was asked and answered so far."""
        before = self.answers.get(asked.run_id)
        if before is not None and _same(before[0], asked):
            assert decision == Replay(before[1]), "the same request is answered with the same bytes"
            return
        assert not isinstance(decision, Replay), "nobody is shown what another request was answered"
        reasons = self.reasons(asked, forbidden)
        cancelled = (asked.run_id, asked.session_id, asked.user_id) in self.store.cancelled
        cancelled = cancelled and not self.store.attempts.get(asked.run_id)
        if isinstance(decision, Cancel):
            assert cancelled, "nobody but its user cancels a run"
            assert not reasons & _FOREIGN
            return
        if isinstance(decision, Execute):
            assert not reasons
            assert not cancelled, "what was cancelled is not started"
            assert asked.run_id not in self.executed, "no request is executed twice"
            return
        assert decision.code in reasons
        assert decision.stored is (decision.code is not ErrorCode.RUN_ID_CONFLICT)
        if ErrorCode.RUN_ID_CONFLICT in reasons:
            assert decision.code is ErrorCode.RUN_ID_CONFLICT
        self.nothing_of_others_is_told(decision, asked)

    def reasons(self, asked: Asked, forbidden: str | None) -> set[ErrorCode]:
        """Return every reason that there is for not executing a request that was not answered before."""
        owner = self.owners.get(asked.session_id, _owner(asked))
        found = asked.fields
        deadline = found.get("deadline")
        late = deadline is not None and datetime.fromisoformat(deadline) <= self.store.now
        session = self.store.sessions.get(asked.session_id, a_session())
        holds = {
            ErrorCode.RUN_ID_CONFLICT: asked.run_id in self.answers or asked.run_id in self.store.runs,
            ErrorCode.UNSUPPORTED_PROPERTY: forbidden is not None,
            ErrorCode.SESSION_FORBIDDEN: owner[0] != asked.user_id,
            ErrorCode.SESSION_TARGET_MISMATCH: owner[1:] != _owner(asked)[1:],
            ErrorCode.UNKNOWN_TARGET: asked.target not in self.known,
            ErrorCode.SESSION_TOO_LARGE: _too_large(session.session_state, found.get("session_state", {}))
            or _too_large(session.metadata, found.get("metadata", {})),
            # One that was started in time is executed, to end as late: somebody may have seen something of it.
            ErrorCode.DEADLINE_EXCEEDED: late and asked.run_id not in self.store.attempts,
        }
        return {code for code, is_so in holds.items() if is_so}

    def nothing_of_others_is_told(self, refusal: Refuse, asked: Asked) -> None:
        own = {asked.session_id, asked.user_id, asked.run_id, asked.target.id}
        owner = self.owners.get(asked.session_id)
        if owner is not None and owner[0] == asked.user_id:
            own |= set(owner)  # its target may be told to whom the session belongs
            assert refusal.code is not ErrorCode.SESSION_FORBIDDEN
        elif owner is not None:
            told_first = {ErrorCode.RUN_ID_CONFLICT, ErrorCode.UNSUPPORTED_PROPERTY, ErrorCode.SESSION_FORBIDDEN}
            assert refusal.code in told_first
        others = {*_USERS, *_SESSIONS, *(target.id for target in _TARGETS), *(one.run_id for one in self.asked)} - own
        told = set(re.findall(r"[\w-]+", refusal.message))
        assert not told & (others | {"1234567"})

    @invariant()
    def what_is_stored_is_what_was_answered_first(self) -> None:
        kept = {run_id: receipt.reply for run_id, receipt in self.store.receipts.items()}
        assert kept == {run_id: body for run_id, (_, body) in self.answers.items()}

    @invariant()
    def a_session_has_only_turns_of_its_user_and_its_target(self) -> None:
        for session_id, owner in self.owners.items():
            session = self.store.sessions[session_id]
            assert (session.user_id, str(session.session_type), session.target_id) == owner
        turns = [self.executed[run_id] for run_id in self.store.runs if run_id in self.executed]
        assert [turn for turn in turns if _owner(turn) != self.owners[turn.session_id]] == []

    @invariant()
    def all_conflicts_look_the_same(self) -> None:
        assert len(self.conflicts) <= 1

    def a_reply(self, asked: Asked) -> bytes:
        """Return bytes that no other answer has."""
        return f"{len(self.answers)} to {asked}".encode()

    def answered(self, asked: Asked, reply: bytes, store: Any) -> None:
        store(asked, reply)
        self.answers[asked.run_id] = (asked, reply)


def _owner(asked: Asked) -> tuple[str | None, str, str]:
    return asked.user_id, asked.target.type.value, asked.target.id


def _same(one: Asked, other: Asked) -> bool:
    """Whether two requests ask for the same: a default that is given is as good as left out."""
    defaults = {name: values[0] for name, values in _CONTENT.items() if name != "input"}
    return replace(one, content="") == replace(other, content="") and defaults | one.fields == defaults | other.fields


def _too_large(stored: dict[str, Any], added: dict[str, Any]) -> bool:
    return bool(added) and len(json.dumps(stored | added, separators=(",", ":"))) > _LARGEST_BYTES


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "MAX_STATE_BYTES", _LARGEST_BYTES)


@pytest.mark.timeout(400)  # where it fails, the shortest way there is looked for
def test_in_any_order_of_requests_nothing_runs_twice_or_is_shown_to_others_and_answers_stay_the_same() -> None:
    run_state_machine_as_test(DecideMachine, settings=settings(max_examples=150, stateful_step_count=40))
