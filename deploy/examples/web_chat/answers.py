"""Answers that are being written: each is watched once, whoever and however many look at it.

A run's events are kept by nobody, so one task for each run collects them here, from its request to its reply, and a
page that is reloaded, or opened twice, is told all of them again. A gateway that was restarted has none of that; the
page then sends the same request with the same run_id, which is executed once whatever happens: while the turn runs its
further events come, and its reply in any case.

Why not the encoders of `pydantic_ai.ui` (AG-UI, Vercel AI)? They encode one agent's own events for one HTTP request.
What comes from the queue is the events of teamturn, which have more to say: members and members of members, attempts
that go on elsewhere, and a reply that is REJECTED, CANCELLED or PAUSED. A detour over pydantic-ai's events would lose
that, have no ids to resume by, and load the model libraries into a gateway that has no model. Whoever has a page that
speaks such a protocol already can make the turn in `Answers._watch`: a `content_delta` is a PartDeltaEvent, those
of a tool call are a FunctionToolCallEvent and a FunctionToolResultEvent, for a VercelAIEventStream without run input.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from teamturn import ClientError, ClientTimedOut, RunClient, RunRequest

MOST_EVENTS: Final = 50_000
"""Of one run: what is beyond is left out, but for the last one, which has the reply."""
_KEPT_SECONDS: Final = 120.0
"""How long a finished answer is kept, for a page that was away for a moment; then it is read from Postgres."""
_COMES_AGAIN_MILLISECONDS: Final = 700
"""After how long a browser whose stream was broken off comes again; by itself, Chromium does after 3 seconds."""
_WAITS_SECONDS: Final = 3600.0
"""How long an answer is waited for, queues and all; it is not lost by the end of that."""

_log = logging.getLogger("web_chat")


class TooBusy(Exception):
    """More answers are being written than may be; the text says so in a sentence."""


class Answer:
    """One run: what was asked, and its events so far, as JSON."""

    def __init__(self, request: RunRequest) -> None:
        self.request = request
        self.ended = False
        self.failed = False
        self._events: list[str] = []
        self._changed = asyncio.Event()

    def add(self, event: str, *, last: bool = False) -> None:
        """Add an event, for all who follow."""
        self._events.append(event)
        self.ended = self.ended or last  # at once, so that who sees the last one finds the answer ended
        self._wake()

    def fail(self, message: str) -> None:
        """Add the last event, the gateway's own: what is wrong, in a sentence for people."""
        self.failed = True
        self.add(json.dumps({"type": "gateway_failed", "message": message}), last=True)

    async def follow(self, after: int, heartbeat_seconds: float) -> AsyncIterator[str]:
        """Yield the events behind so many, as server-sent events whose ids are their numbers from 1; until the end.

        JSON has no line breaks, so that one `data:` line holds an event.
        """
        yield f"retry: {_COMES_AGAIN_MILLISECONDS}\n\n"
        while True:
            changed = self._changed
            while after < len(self._events):
                after += 1
                yield f"id: {after}\ndata: {self._events[after - 1]}\n\n"
            if self.ended:
                return
            try:
                async with asyncio.timeout(heartbeat_seconds):
                    await changed.wait()
            except TimeoutError:
                yield ": still here\n\n"

    def is_over(self, after: int) -> bool:
        """Whether who has seen so many events has seen all."""
        return self.ended and after >= len(self._events)

    @property
    def is_full(self) -> bool:
        """Whether it has as many events as are kept."""
        return len(self._events) >= MOST_EVENTS

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Answers:
    """The answers of all users, by run_id. An async context manager; leaving it stops watching, and ends no run."""

    def __init__(self, client: RunClient, *, most_of_a_user: int = 3, most: int = 500) -> None:
        self._client = client
        self._most_of_a_user = most_of_a_user
        self._most = most
        self._by_run: dict[str, Answer] = {}
        self._watching: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    def of(self, run_id: str) -> Answer | None:
        """Return the answer of a run, if it is being written or was a moment ago."""
        return self._by_run.get(run_id)

    def running(self, user_id: str) -> list[Answer]:
        """Return the user's answers that are being written, the earliest first."""
        return [one for one in self._by_run.values() if not one.ended and one.request.user_id == user_id]

    def ask(self, request: RunRequest) -> Answer:
        """Publish a request, and watch it; one that is watched already is not published again. Raises TooBusy."""
        if (known := self._by_run.get(request.run_id)) is not None and not known.failed:
            return known
        if len(self.running(request.user_id or "")) >= self._most_of_a_user:
            raise TooBusy("Your other conversations are still being answered: wait for one of them, or stop it.")
        if len(self._watching) >= self._most:
            raise TooBusy("Too many people ask at the moment. Try again in a minute.")
        answer = self._by_run[request.run_id] = Answer(request)
        task = asyncio.create_task(self._watch(answer))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return answer

    async def _watch(self, answer: Answer) -> None:
        """Have the run's events added to its answer, over lost connections too: the client sees to that."""
        try:
            async for event in self._client.stream(answer.request, timeout_seconds=_WAITS_SECONDS):
                last = event.type == "run_finished"
                if last or not answer.is_full:
                    answer.add(event.model_dump_json(), last=last)
        except ClientTimedOut:
            answer.fail("There is no answer yet. It may still come: look here again later.")
        except ClientError as error:
            _log.warning("run %s: %s", answer.request.run_id, error)
            answer.fail("This could not be asked. Try again in a minute.")
        except Exception:  # noqa: BLE001 - whatever it is, who waits is told
            _log.exception("run %s", answer.request.run_id)
            answer.fail("Something went wrong on the way. Load the page again to see whether the answer is there.")
        finally:
            answer.ended = True
            asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._forget, answer)

    def _forget(self, answer: Answer) -> None:
        if self._by_run.get(answer.request.run_id) is answer:
            del self._by_run[answer.request.run_id]
