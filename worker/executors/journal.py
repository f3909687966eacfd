"""The journal of a run: what its steps came to, so that a later attempt does not make them again.

A step is a model request, a tool call or a `turn.step`. Its key is the same in every attempt. A step that must not be
made twice is recorded when it starts, and any step when it has ended, before whoever asked goes on: by one small write
on the session's lane, which a worker without the session's lock has not got.

What a later attempt finds of a step:

    nothing     it is made
    started     one that may be repeated is made again; any other ends the turn: nobody knows whether it took effect
    not_made    it is made: its start was on its way to Postgres when the lane was lost, and it was never begun
    done        its result is given again, and the change that it made to the session's state
    failed      it fails again as it did

A step that asks something else than the one that was recorded under its key is made, and recorded in its place.

When the lane is lost, no further step is begun; what is being made is let end, and can be recorded under another claim
of the session: it was made, and must not be for nothing, nor be called uncertain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, NoReturn

import structlog
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from schemas.errors import ErrorCode
from worker.errors import InvalidResult, StepUncertain, StoreUnavailable, TurnFailed, UsageLimitReached
from worker.executors.json_values import cleaned_json
from worker.executors.state_changes import StateChange, kept_change
from worker.operations import tracing

MAX_STEP_BYTES: Final = 16 * 2**20
"""Of one record: everything else on the lane waits while it is written."""
MAX_RECORDS: Final = 10_000
"""Of one run; a step that must not be made twice has two. A model that never ends asking for tools fills no table."""
MAX_RECORDED_BYTES: Final = 128 * 2**20
"""Of one run: a later attempt reads all of them at once."""
CONTEXT_KEY: Final = "context"
"""Of step 0: what the turn was given."""

STORED_ATTEMPT: Final = 0
"""Of steps of a paused run, which another one goes on with: what they changed in the state is stored."""
GIVEN_BACK_ATTEMPT: Final = -1
"""Of steps of a run that went on with a paused one and failed: what they changed is not stored."""

_LONGEST_SPAN_NAME_CHARACTERS: Final = 100

_AROUND: ContextVar[tuple[object, ...]] = ContextVar("steps around", default=())
"""The steps in the making that the running code is part of: a tool can make steps of its own."""

_log = structlog.get_logger()


class StepState(StrEnum):
    """How far a step has come."""

    STARTED = "started"
    NOT_MADE = "not_made"
    DONE = "done"
    FAILED = "failed"


ENDED: Final = frozenset({StepState.DONE, StepState.FAILED})


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as it is recorded."""

    key: str
    seq: int
    """Steps are numbered as they were recorded; 0 is the turn's context."""
    attempt: int
    state: StepState
    asked: bytes = b""
    """What was asked, hashed."""
    record: bytes = b""
    """JSON: the result and the change of the state, or what it failed with."""
    input_tokens: int = 0
    output_tokens: int = 0


class RecordedError(Exception):
    """A step failed before, and fails again. Raised under the name of what it failed with; the text is not kept."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step is asked to do."""

    key: str
    fingerprint: bytes = b""
    repeatable: bool = False
    """Whether it may be made again if nobody knows how it ended."""
    failure_kept: bool = True
    """Whether its failure is recorded; else it is made again by whoever asks again."""
    tokens: Callable[[Any], tuple[int, int]] = lambda _: (0, 0)
    """What a result used: tokens read and written."""
    name: str = ""
    """What the key is made of: the name that the call has in its part of the turn."""


Write = Callable[[Sequence[StepRecord]], Awaitable[None]]
"""Record steps. Raises StoreUnavailable if this worker can't any more."""


class Journal:
    """The steps of one attempt, and those that earlier ones recorded."""

    def __init__(
        self,
        write: Write | None = None,
        *,
        held: Callable[[], Awaitable[None]] | None = None,
        attempt: int = 1,
        recorded: Sequence[StepRecord] = (),
        context: Callable[[], JsonValue] = dict,
    ) -> None:
        """Without `write` nothing is recorded. `context` is what the turn was given, for step 0.

        `held` raises StoreUnavailable if others may have the session by now.
        """
        self._write = write
        self._held = held
        self._attempt = attempt
        self._recorded = {record.key: record for record in recorded if record.state is not StepState.NOT_MADE}
        self._context = context
        self._context_written = CONTEXT_KEY in self._recorded
        self._seq = max((record.seq for record in recorded), default=0)
        self._recorded_bytes = sum(len(record.record) for record in recorded)
        ended = sorted((one for one in self._recorded.values() if one.state in ENDED), key=lambda one: one.seq)
        self._unmade = [one for one in ended if one.attempt != STORED_ATTEMPT]
        """Those whose change of the state is not made again yet."""
        self._unasked = {one.key for one in ended if one.key != CONTEXT_KEY}
        self._diverged = False
        self._over = asyncio.Event()
        self._told: Callable[[], None] = lambda: None
        self.stopped: Exception | None = None
        """Why the attempt must end now: the lane is lost, a step is uncertain, or the run is cancelled."""
        self._making: set[object] = set()
        self._nothing_made = asyncio.Event()
        self.unrecorded: list[StepRecord] = []
        """What could not be recorded of this attempt, since its lane was lost."""
        self._writing = 0
        self._writing_since = 0.0
        self._waited_seconds = 0.0
        self.resumed_steps = 0
        """How many steps this attempt was given, and did not make."""
        self.has_recorded = False
        """Whether this attempt has recorded a step's end."""
        self.recorded_first: Callable[[], None] = lambda: None
        """Called when it has."""
        self.changed: Callable[[StateChange], None] = lambda _: None
        """Called when a step has changed the session's state."""
        self.last_key: str | None = None
        """The step that was begun last; for people who ask where a turn is."""

    @property
    def attempt(self) -> int:
        """Which attempt of the run it is of."""
        return self._attempt

    @property
    def kept(self) -> bool:
        """Whether steps are recorded."""
        return self._write is not None

    @property
    def has_fruit(self) -> bool:
        """Whether a step of this attempt has come to its end, recorded or to be recorded."""
        return self.has_recorded or any(one.state in ENDED for one in self.unrecorded)

    @property
    def last_seq(self) -> int:
        """The number of the step that was recorded last."""
        return self._seq

    @property
    def waited_seconds(self) -> float:
        """How long steps of this attempt have waited to be recorded, those that wait now included."""
        return self._waited_seconds + (time.monotonic() - self._writing_since if self._writing else 0.0)

    def listen(self, told: Callable[[], None]) -> None:
        """Have `told` called when the attempt must end."""
        self._told = told

    def stop(self, reason: Exception) -> None:
        """Have the attempt end now, wherever it is."""
        if self.stopped is None:
            self.stopped = reason
            self._told()

    def close(self, *, completed: bool) -> None:
        """Say that the attempt is over: what its users' code left behind records nothing any more."""
        self._over.set()
        if completed and self._unasked:
            self._say_diverged(min(self._unasked))

    async def settled(self) -> None:
        """Wait, once the attempt must end, until no step is being made any more that can come to its end."""
        while self._making:
            self._nothing_made.clear()
            await self._nothing_made.wait()

    async def run(self, asked: Asked, state: Callable[[], dict[str, Any]], make: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - JSON
        """Make a step, or return what it came to before. `make` returns JSON; `state` is the session's.

        It does not return at all once the attempt must end.
        """
        self.last_key = asked.key
        if self._write is None:
            return await make()
        if self.stopped is not None or self._over.is_set():
            await self._never()
        found = self._found(asked)
        if found is not None and found.state is not StepState.STARTED:
            return self._again(found, state())
        if not asked.repeatable and found is not None:
            await self._stop(StepUncertain(f"{asked.key} was started before, and nobody knows whether it took effect"))
        with self._in_the_making(), _told(asked):
            return await self._made(asked, make)

    async def _made(self, asked: Asked, make: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - JSON
        if not asked.repeatable:
            await self._record(asked, StepState.STARTED)
        else:
            await self._check_held()
        with kept_change() as change:
            try:
                result = await make()
            except Exception as error:
                if asked.failure_kept:
                    await self._record(asked, StepState.FAILED, {"error": _described(error)})
                raise
        record = {"result": result, "change": change.as_json()} if change else {"result": result}
        await self._record(asked, StepState.DONE, record, asked.tokens(result))
        if change:
            self.changed(change)
        return result

    def is_done(self, key: str) -> bool:
        """Return whether an earlier attempt, or an earlier run of the turn, has recorded what the step came to."""
        found = self._recorded.get(key)
        return found is not None and found.state is StepState.DONE

    def failure_of(self, key: str, path: str, state: dict[str, Any]) -> TurnFailed | None:
        """Return the failure of a part of the turn, whose steps begin with `path`, if it was kept."""
        found = self._recorded.get(key)
        if found is None or found.state is not StepState.FAILED:
            return None
        self._unasked -= {one for one in self._unasked if one.startswith(path)}
        try:
            self._again(found, state)
        except TurnFailed as failure:
            return failure
        return None

    async def keep_failure(self, key: str, failure: TurnFailed) -> None:
        """Record the failure of a part of the turn."""
        if self._write is not None:
            await self._record(Asked(key), StepState.FAILED, {"error": _described(failure)})

    async def _check_held(self) -> None:
        """Look whether the session is still this worker's, before a step is made that is not recorded first.

        Another worker may have made and recorded it by now: this turn had to wait, or its worker did.
        """
        if self._held is not None:
            try:
                await self._held()
            except StoreUnavailable as error:
                await self._stop(error)

    def _found(self, asked: Asked) -> StepRecord | None:
        found = self._recorded.get(asked.key)
        self._unasked.discard(asked.key)
        if found is None or found.state is StepState.STARTED or found.asked == asked.fingerprint:
            return found
        self._say_diverged(asked.key)
        if found in self._unmade:
            self._unmade.remove(found)
        del self._recorded[asked.key]
        return None

    def _say_diverged(self, key: str) -> None:
        if not self._diverged:
            self._diverged = True
            _log.warning("journal_diverged", step=key, consequence="the turn goes on from the last step that matches")

    def _again(self, found: StepRecord, state: dict[str, Any]) -> JsonValue:
        self.resumed_steps += 1
        # The state after a step is that after all that were recorded before it, side by side with it too.
        while self._unmade and self._unmade[0].seq <= found.seq:
            earlier = from_json(self._unmade.pop(0).record)
            if "change" in earlier:
                StateChange.of(earlier["change"]).make(state)
        recorded = from_json(found.record)
        if found.state is StepState.FAILED:
            raise _error_of(recorded["error"])
        result: JsonValue = recorded["result"]
        return result

    def _make_room(self, size_bytes: int) -> None:
        """Raise UsageLimitReached where another record would be more than a run may have."""
        self._recorded_bytes += size_bytes
        if self._seq >= MAX_RECORDS or self._recorded_bytes > MAX_RECORDED_BYTES:
            raise UsageLimitReached(
                f"the turn has recorded more than {MAX_RECORDS} times in its journal, or {MAX_RECORDED_BYTES} bytes"
            )

    async def _record(
        self, asked: Asked, state: StepState, record: dict[str, Any] | None = None, tokens: tuple[int, int] = (0, 0)
    ) -> None:
        text = b"" if record is None else to_json(record)
        if len(text) > MAX_STEP_BYTES:
            raise InvalidResult(f"{asked.key} came to {len(text)} bytes; the limit is {MAX_STEP_BYTES}")
        self._make_room(len(text))
        steps = [] if self._context_written else [self._first()]
        self._context_written = True
        self._seq += 1
        steps.append(StepRecord(asked.key, self._seq, self._attempt, state, asked.fingerprint, text, *tokens))
        assert self._write is not None  # noqa: S101 - for the type checker: `run` has looked
        try:
            with self._waiting():
                await self._write(steps)
        except StoreUnavailable as error:
            if state is StepState.STARTED:
                steps[-1] = replace(steps[-1], state=StepState.NOT_MADE)
            self.unrecorded += steps
            await self._stop(error)
        if state is not StepState.STARTED and not self.has_recorded:
            self.has_recorded = True
            self.recorded_first()

    def _first(self) -> StepRecord:
        # Not `done` as others are: it is no fruit of the attempt.
        return StepRecord(CONTEXT_KEY, 0, self._attempt, StepState.STARTED, record=to_json(self._context()))

    async def _stop(self, reason: Exception) -> NoReturn:
        """End the attempt from outside: users' code could swallow what is raised here, and go on."""
        self.stop(reason)
        await self._never()

    async def _never(self) -> NoReturn:
        self._no_longer_made(_AROUND.get())
        await self._over.wait()
        raise asyncio.CancelledError

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if not self._writing:
            self._writing_since = time.monotonic()
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            if not self._writing:
                self._waited_seconds += time.monotonic() - self._writing_since

    @contextmanager
    def _in_the_making(self) -> Iterator[None]:
        step, around = object(), _AROUND.get()
        self._making.add(step)
        _AROUND.set((*around, step))
        try:
            yield
        finally:
            _AROUND.set(around)
            self._no_longer_made([step])

    def _no_longer_made(self, steps: Iterable[object]) -> None:
        self._making.difference_update(steps)
        if not self._making:
            self._nothing_made.set()


def _told(asked: Asked) -> AbstractContextManager[object]:
    """Open the span of a step that is made. Its name leaves out what is another in each call: an id, a digest."""
    if not tracing.recording():
        return tracing.NOT_TRACED
    # A model can name a tool with a lone surrogate.
    name, key = cleaned_json(asked.name), cleaned_json(asked.key)
    shown = name.partition("@")[0].rpartition("/")[2][:_LONGEST_SPAN_NAME_CHARACTERS]
    return tracing.span(f"step {shown}".strip(), {"teamturn.step.key": key})


def _described(error: Exception) -> dict[str, JsonValue]:
    if isinstance(error, TurnFailed):
        return {"code": error.code.value, "message": error.message, "retryable": error.is_retryable}
    return {"name": type(error).__name__}


def _error_of(recorded: dict[str, Any]) -> Exception:
    if "code" in recorded:
        return failure_of_code(ErrorCode(recorded["code"]), recorded["message"], retryable=recorded["retryable"])
    named: type[Exception] = type(recorded["name"], (RecordedError,), {})
    return named("it failed so in an earlier attempt")


def failure_of_code(code: ErrorCode, message: str, *, retryable: bool) -> TurnFailed:
    """Return the failure of a code, as it was raised before."""
    kinds = {kind.code: kind for kind in TurnFailed.__subclasses__()}
    return kinds[code](message, retryable=retryable)
