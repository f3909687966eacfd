"""The conversation: what is said, one turn after the other, and the commands between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

from schemas.replies import RunReply, RunStatus
from schemas.requests import RunRequest
from worker.cli.chat.line import Line
from worker.cli.chat.narration import Narration
from worker.cli.chat.screens import Screen, Style
from worker.cli.chat.stored import StoredHere
from worker.cli.terminal import one_line
from worker.errors import BrokerUnavailable, StartupError

_HELP: Final = """\
/state    the session's state, as it is stored
/history  its last turns
/cancel   stop the answer that is being written
/quit     leave; a request that is sent goes on without you
/help     this list
What begins with // is sent with one slash. Enter sends, Alt-Enter begins a line.
Ctrl-C stops an answer, and leaves where there is none; Ctrl-D leaves."""

_LOSSES: Final = (BrokerUnavailable, AMQPError, ChannelInvalidStateError)


@dataclass
class _Asked:
    """A request that is being answered."""

    request: RunRequest
    is_unwanted: bool = False
    """Whether it was cancelled: said again where the connection was lost before RabbitMQ had it."""


class Talk:
    """Takes what is said, in order, and shows what comes of it.

    Args:
        line: The line to RabbitMQ.
        screen: Where all of it is shown.
        stored: What /state and /history show.
        request: Makes a request of what is said; raises StartupError for what can't be one.
        timeout_seconds: How long a reply is waited for.

    """

    def __init__(
        self,
        line: Line,
        screen: Screen,
        stored: StoredHere,
        request: Callable[[str], RunRequest],
        *,
        timeout_seconds: float,
    ) -> None:
        self._line = line
        self._screen = screen
        self._stored = stored
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._asked: _Asked | None = None
        self._leaving = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._one_by_one = False
        self.all_completed = True
        """Whether every turn completed, and every command was one."""
        self.was_interrupted = False
        """Whether it was left by Ctrl-C."""

    async def run(self, lines: AsyncIterator[str], *, one_by_one: bool) -> None:
        """Talk until the lines end, or somebody leaves. One by one: a line is taken when all before it is done."""
        self._one_by_one = one_by_one
        tasks = [
            asyncio.create_task(self._take(lines)),
            asyncio.create_task(self._answer_all()),
            asyncio.create_task(self._leave_when_told()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            under_way = [*tasks, *self._errands]
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        if self._asked is not None:
            session = one_line(self._asked.request.session_id)
            self._screen.aside(f"· the request goes on; its answer will be in the session {session}")
        for task in done:
            task.result()

    def interrupt(self) -> None:
        """Do what Ctrl-C means: cancel what is being answered, or leave where there is nothing to cancel (any more)."""
        if self._asked is not None and not self._asked.is_unwanted:
            self.was_interrupted = self._one_by_one
            self._cancel(self._asked)
        else:
            self.was_interrupted = True
            self.leave()

    def leave(self) -> None:
        """End the conversation."""
        self._leaving.set()

    async def _leave_when_told(self) -> None:
        await self._leaving.wait()
        if self._failed is not None:
            raise self._failed

    async def _take(self, lines: AsyncIterator[str]) -> None:
        async for text in lines:
            if text.startswith("/") and not text.startswith("//"):
                obeying = self._run_errand(self._obey(text.strip()))
                if self._one_by_one:
                    await obeying
                continue
            if self._asked is not None and not self._one_by_one:
                self._screen.aside("· waits for its turn")
            self._said.put_nowait(text.removeprefix("/") if text.startswith("//") else text)
            if self._one_by_one:
                await self._said.join()
            if self.was_interrupted:
                return

    def _run_errand(self, errand: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have something done beside the reading, so that the prompt stays."""
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._end_errand)
        return task

    def _end_errand(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed = task.exception()
            self.leave()

    async def _obey(self, command: str) -> None:
        match command.lower():
            case "/state":
                self._screen.page(await self._stored.state())
            case "/history":
                self._screen.page(await self._stored.history(columns=self._screen.columns))
            case "/cancel" if self._asked is not None:
                self._cancel(self._asked)
            case "/cancel":
                self._screen.aside("· nothing is being answered")
            case "/help":
                self._screen.page(_HELP)
            case "/quit":
                self.leave()
            case _:
                self.all_completed = False
                self._screen.aside(
                    f"There is no command {one_line(command.split(maxsplit=1)[0])}; /help lists them. "
                    "To send a text that begins with a slash, write two.",
                    style=Style.ALARMED,
                )

    async def _answer_all(self) -> None:
        while True:
            text = await self._said.get()
            try:
                await self._answer(text)
            finally:
                self._screen.go_on("")
                self._said.task_done()

    async def _answer(self, text: str) -> None:
        self._asked = asked = _Asked(self._request(text))
        reply = await self._reply_to(asked)
        self._asked = None
        # Here a PAUSED reply's questions will be asked, and their answers sent on.
        if reply is None or reply.status is not RunStatus.COMPLETED:
            self.all_completed = False

    async def _reply_to(self, asked: _Asked) -> RunReply | None:
        """Show a run until its reply, and return that; None if it did not come in time."""
        narration = Narration(self._screen)
        trouble: str | None = None
        while True:
            client = self._line.client
            self._screen.go_on("waiting")
            try:
                async with aclosing(client.stream(asked.request, timeout_seconds=self._timeout_seconds)) as events:
                    async for event in events:
                        trouble = None
                        self._screen.go_on("cancelling" if asked.is_unwanted else "answering")
                        narration.tell(event)
                        if event.type == "run_finished":
                            narration.finish(event.reply)
                            return event.reply
            except TimeoutError:
                self._say_that_it_takes_long()
                return None
            except _LOSSES as error:
                if trouble != str(error):
                    trouble = str(error)
                    self._screen.aside(f"· RabbitMQ is away ({one_line(trouble)}); connecting again …")
                self._screen.go_on("connecting again")
                # Then the same request again: with the same run_id it gets the same reply, and is not executed twice.
                await self._line.replace(client)
                if asked.is_unwanted:
                    self._cancel(asked)

    def _say_that_it_takes_long(self) -> None:
        self._screen.aside(
            f"No reply within {self._timeout_seconds:g} s; is a worker running? The request stays queued, and its "
            "answer will be in the session.",
            style=Style.ALARMED,
        )

    def _cancel(self, asked: _Asked) -> None:
        asked.is_unwanted = True
        self._screen.go_on("cancelling")
        self._run_errand(self._tell_cancelled(asked.request))

    async def _tell_cancelled(self, request: RunRequest) -> None:
        try:
            await self._line.client.cancel(request.run_id, session_id=request.session_id, user_id=request.user_id)
        except BrokerUnavailable:
            return  # told again, when the line is there again
        except StartupError as error:
            self._screen.aside(str(error), style=Style.ALARMED)
