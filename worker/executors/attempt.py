"""One attempt of a turn: the executor under its time limit, and whatever comes of it as a value."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, astuple, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from pydantic import JsonValue

from schemas.replies import RunStatus
from schemas.requests import RunRequest
from worker.errors import (
    ExecutorFailed,
    InvalidResult,
    RunCancelled,
    StoreUnavailable,
    TurnFailed,
)
from worker.executors.journal import Journal
from worker.executors.json_values import MAX_STATE_BYTES, as_json, clean, json_text
from worker.executors.pauses import Origin, Pause, RunPaused, Used, together
from worker.executors.steps import Steps
from worker.executors.time_limit import TimeLimit
from worker.executors.turn import Executor, SharedSession, Turn, TurnContext, Usage
from worker.sessions.claim import SessionRow

_CANCELLATION_SECONDS: Final = 2.0
_LONGEST_NAME_CHARACTERS: Final = 255

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    status: RunStatus
    content: JsonValue
    session_state: dict[str, JsonValue] | None
    """The state to store; None after a failure: the stored one stays."""
    error: TurnFailed | None = None
    session_name: str | None = None
    """The name to store, if the turn changed it."""
    pause: Pause | None = None
    """Of a paused one: what it leaves to the run that goes on with it."""


def new_turn(
    asked: RunRequest,
    session: SessionRow | None,
    given: TurnContext,
    *,
    attempt: int,
    journal: Journal | None = None,
    origin: Origin | None = None,
) -> Turn:
    """Return a turn with everything of its own: what the executor changes is neither the request's nor the row's.

    The request's state is laid over the stored one, key by key, and so is its metadata. `origin` is what it goes on
    with.
    """
    stored_state = {} if session is None else session.session_state
    stored_metadata = {} if session is None else session.metadata
    shared = SharedSession(deepcopy(stored_state | asked.session_state), None if session is None else session.name)
    return Turn(
        run_id=asked.run_id,
        session_id=asked.session_id,
        user_id=asked.user_id,
        input=asked.text,
        parts=asked.input if isinstance(asked.input, str) else list(asked.input),
        metadata=deepcopy(stored_metadata | asked.metadata),
        attempt=attempt,
        started_at=given.started_at,
        history=given.history,
        session=shared,
        steps=Steps(shared, journal),
        summary=given.summary,
        origin=origin,
        origin_id=asked.run_id if origin is None else origin.run_id,
        id_seed=asked.fingerprint.hex(),
    )


async def attempt(
    executor: Executor, turn: Turn, *, limit: timedelta, now: datetime, deadline: datetime | None
) -> Outcome:
    """Have the executor take the turn, and return what came of it.

    It never raises for what the executor did. It raises StoreUnavailable where a step could not be recorded: the lock
    of the session is gone then, and there is no outcome. `now` is the database's time, by which the deadline is judged.
    The time in which steps wait to be recorded does not count towards the limit: a full disk fails no turn.
    """
    left = math.inf if deadline is None else (deadline - now).total_seconds()
    time_limit = TimeLimit(limit.total_seconds(), left, turn.steps.journal)
    completed = False
    try:
        outcome = await _completed(executor, turn, time_limit)
        completed = outcome.status is RunStatus.COMPLETED
    except _Stopped as stopped:
        if isinstance(stopped.reason, RunCancelled):
            return cancelled(turn, stopped.reason)
        if isinstance(stopped.reason, TurnFailed):
            return failed(stopped.reason)
        raise stopped.reason from None
    except TurnFailed as error:
        return failed(error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the worker stops
        return _broken(executor, error)
    except Exception as error:  # noqa: BLE001 - whatever users' code raises ends its own turn only
        return _broken(executor, error)
    else:
        return outcome
    finally:
        turn.steps.journal.close(completed=completed)
        if turn.origin is not None:
            before = turn.origin.used.model_dump()
            turn.usage = Usage(**{name: max(n - before[name], 0) for name, n in asdict(turn.usage).items()})


class _Stopped(Exception):
    """The journal ends the attempt."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def _broken(executor: Executor, error: BaseException) -> Outcome:
    # The text may hold anything; the reply names the type only, and the log, which is redacted, all of it.
    _log.error("executor_failed", target=str(executor.target), exc_info=error)
    return failed(ExecutorFailed(f"{executor.target} raised {type(error).__name__}"))


def failed(error: TurnFailed) -> Outcome:
    """Return the outcome of a turn that ended without an answer."""
    return Outcome(RunStatus.ERROR, content=None, session_state=None, error=error)


def cancelled(turn: Turn, reason: RunCancelled) -> Outcome:
    """Return the outcome of a turn that was cancelled: with what was written, and the state, if that can be stored."""
    try:
        state = _state_to_store(turn)
    except InvalidResult:
        state = None
    written = clean("".join(turn.written)) or None
    return Outcome(RunStatus.CANCELLED, content=written, session_state=state, error=reason)


async def _completed(executor: Executor, turn: Turn, limit: TimeLimit) -> Outcome:
    name_before = turn.session_name
    if turn.steps.journal.stopped is not None:
        # Before it began. Its first step would wait for ever, and nobody would be told.
        raise _Stopped(turn.steps.journal.stopped)
    pause: Pause | None = None
    content: JsonValue = None
    try:
        answer = await _within(limit, _run(executor, turn), turn.steps.journal)
    except RunPaused as paused:
        pause = _pause(turn, paused)
    else:
        content = as_json(answer, what="the answer")
    state = _state_to_store(turn)
    named = _name_to_store(turn.session_name, name_before)
    if not all(type(count) is int and count >= 0 for count in astuple(turn.usage)):
        turn.usage = Usage()  # a session's sums are made of it
        raise InvalidResult("the counts of turn.usage must be whole numbers, 0 or more")
    status = RunStatus.COMPLETED if pause is None else RunStatus.PAUSED
    return Outcome(status, content=content, session_state=state, session_name=named, pause=pause)


def _pause(turn: Turn, paused: RunPaused) -> Pause:
    """Return what a turn leaves that pauses. What it has used by now is all of it, also what was used before it."""
    begun = turn.origin or Origin(run_id=turn.run_id, id_seed=turn.id_seed, input=turn.parts)
    used = Used(**asdict(turn.usage))
    done = frozenset(step.name for step in turn.step_results if step.run_id is None)
    origin = begun.model_copy(update={"used": used, "functions": done})
    return Pause(origin=origin, pending=together(paused.pending))


def _state_to_store(turn: Turn) -> dict[str, JsonValue]:
    state = as_json(turn.session_state, what="the session state")
    if not isinstance(state, dict):
        raise InvalidResult(f"the session state must be a dict, and is {type(turn.session_state).__name__}")
    if len(json_text(state)) > MAX_STATE_BYTES:
        raise InvalidResult(f"the session state is larger than {MAX_STATE_BYTES} bytes")
    return state


def _name_to_store(name: object, before: str | None) -> str | None:
    """Return the name that the turn has given its session; None if it has given none: a name can't be taken away."""
    if name is None or name == before:
        return None
    if not isinstance(name, str):
        raise InvalidResult(f"the session name must be a str, and is {type(name).__name__}")
    if not 0 < len(name) <= _LONGEST_NAME_CHARACTERS:
        raise InvalidResult(f"the session name has {len(name)} characters, and not 1 to {_LONGEST_NAME_CHARACTERS}")
    return str(clean(name))


async def _run(executor: Executor, turn: Turn) -> JsonValue:
    try:
        return await executor.run(turn)
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        # sys.exit() would be carried on through the event loop, and end the worker; a panic of a Rust extension
        # would pass every `except Exception`.
        raise ExecutorFailed(f"{executor.target} raised {type(error).__name__}") from error


async def _within(limit: TimeLimit, running: Coroutine[Any, Any, JsonValue], journal: Journal) -> JsonValue:
    """Await an executor for so long, and no longer than its journal lets it go on.

    The limit is a hard one: users' code that ignores its cancellation is left behind.

    A task of its own is what makes that possible; its end is then nobody's business.
    """
    task = asyncio.create_task(running)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: object = None) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(end)
    journal.listen(end)
    try:
        await limit.wait(ended)
        if journal.stopped is not None:
            if isinstance(journal.stopped, StoreUnavailable):
                await _settled(journal, until=limit.until)
            raise _Stopped(journal.stopped)
        if task.done():
            return task.result()
        raise limit.passed()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCELLATION_SECONDS)
        if not task.done():
            _log.error("executor_ignores_cancellation", consequence="it is left behind, and goes on by itself")
        elif not task.cancelled():
            task.exception()  # seen: what it raises while it is cancelled is not the turn's error


async def _settled(journal: Journal, *, until: float) -> None:
    """Let what is being made end: a call that somebody paid for can be recorded when the session is claimed again."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await journal.settled()
