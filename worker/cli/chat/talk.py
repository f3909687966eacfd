"""The conversation: what is said, one turn after the other, and the commands between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from schemas.replies import Approval, RunReply, RunStatus
from schemas.requests import Decision, RunRequest
from worker.cli.approvals import continuing, decision_on, question_of
from worker.cli.chat.narration import Narration
from worker.cli.chat.screens import Screen, Style
from worker.cli.chat.stored import StoredHere
from worker.cli.terminal import cut, one_line
from worker.client import RunClient
from worker.errors import ClientError, ClientTimedOut

_HELP: Final = """\
/state    the session's state, as it is stored
/history  its last turns
/cancel   stop the answer that is being written, or leave a question open
/quit     leave; a request that is sent goes on without you
/help     this list
Enter sends, Alt-Enter begins a line; // begins a text with a slash.
Ctrl-C stops an answer, and leaves where there is none; Ctrl-D leaves."""

_LOOK_SECONDS: Final = 0.2
"""Between two looks at the connection."""


@dataclass
class _Asked:
    """A request that is being answered."""

    request: RunRequest
    is_unwanted: bool = False
    """Whether it was cancelled."""


class Talk:
    """Takes what is said, in order, and shows what comes of it.

    Args:
        client: What requests go through.
        screen: Where all of it is shown.
        stored: What /state and /history show.
        request: Makes a request of what is said; raises StartupError for what can't be one.
        timeout_seconds: How long a reply is waited for.

    """

    def __init__(
        self,
        client: RunClient,
        screen: Screen,
        stored: StoredHere,
        request: Callable[[str], RunRequest],
        *,
        timeout_seconds: float,
    ) -> None:
        self._client = client
        self._screen = screen
        self._stored = stored
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._asked: _Asked | None = None
        self._answered: asyncio.Future[str | None] | None = None
        """What is said to a question that is open; None: it is left open."""
        self._leaving = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._doing = ""
        self._is_away = False
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
            asyncio.create_task(self._tell_of_trouble()),
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
        """Do what Ctrl-C means: leave a question open, cancel what is being answered, or else leave."""
        if self._answered is not None:
            self._say_to_question(None)
        elif self._asked is not None and not self._asked.is_unwanted:
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
                self._screen.echo(text)
                obeying = self._run_errand(self._obey(text.strip()))
                if self._one_by_one:
                    await obeying
                continue
            if self._answered is not None:
                self._screen.echo(text)
                self._say_to_question(text)
                continue
            if self._asked is not None and not self._one_by_one:
                self._screen.aside(cut(f"· waits for its turn: {one_line(text)}", self._screen.columns))
            self._said.put_nowait(text.removeprefix("/") if text.startswith("//") else text)
            if self._one_by_one:
                await self._said.join()
            if self.was_interrupted:
                return

    def _say_to_question(self, said: str | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(said)

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
            case "/cancel" if self._answered is not None:
                self._say_to_question(None)
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
                self._complain(
                    f"There is no command {command.split(maxsplit=1)[0]}; /help lists them. "
                    "To send a text that begins with a slash, write two."
                )

    async def _answer_all(self) -> None:
        while True:
            text = await self._said.get()
            try:
                await self._answer(text)
            finally:
                self._go_on("")
                self._said.task_done()

    async def _answer(self, text: str) -> None:
        self._screen.echo(text)  # and not before: a question stands above its answer
        asked: _Asked | None = _Asked(self._request(text))
        reply = None
        while asked is not None:
            self._asked = asked
            reply = await self._reply_to(asked)
            self._asked = None
            asked = await self._goes_on(asked, reply)
        if reply is None or reply.status is not RunStatus.COMPLETED:
            self.all_completed = False

    async def _goes_on(self, asked: _Asked, reply: RunReply | None) -> _Asked | None:
        """Return what goes on with a paused run, once somebody has decided; None for any other, or if nobody does."""
        if reply is None or reply.status is not RunStatus.PAUSED:
            return None
        decisions = []
        for approval in reply.approvals:
            self._screen.aside(question_of(approval), style=Style.BOLD)
            if self._one_by_one:
                continue  # the next line is the next turn's
            decision = await self._decision_on(approval)
            if decision is None:
                self._screen.aside("· nothing is decided: the run stays paused, until it expires")
                return None
            decisions.append(decision)
        return _Asked(continuing(asked.request, reply, decisions)) if decisions else None

    async def _decision_on(self, approval: Approval) -> Decision | None:
        """Wait for a decision; return None if it is left open."""
        self._go_on("y/n")
        while True:
            self._answered = asyncio.get_running_loop().create_future()
            try:
                said = await self._answered
            finally:
                self._answered = None
            if said is None or (decision := decision_on(approval, said)) is not None:
                return None if said is None else decision
            self._screen.aside("· y or yes: it is called; n or no, and maybe why: it is not; /cancel: left open")

    async def _reply_to(self, asked: _Asked) -> RunReply | None:
        """Show a run until its reply, and return that; None if there is none."""
        narration = Narration(self._screen)
        self._go_on("waiting")
        try:
            async with aclosing(self._client.stream(asked.request, timeout_seconds=self._timeout_seconds)) as events:
                async for event in events:
                    self._go_on("cancelling" if asked.is_unwanted else "answering")
                    narration.tell(event)
                    if event.type == "run_finished":
                        narration.finish(event.reply)
                        return event.reply
        except ClientTimedOut as error:
            self._complain(f"{error} What was published stays queued, and its answer will be in the session.")
        except ClientError as error:
            self._complain(str(error))
        return None

    def _cancel(self, asked: _Asked) -> None:
        asked.is_unwanted = True
        self._go_on("cancelling")
        self._run_errand(self._tell_cancelled(asked.request))

    async def _tell_cancelled(self, request: RunRequest) -> None:
        try:
            await self._client.cancel(request.run_id, session_id=request.session_id, user_id=request.user_id)
        except ClientError as error:
            self._complain(str(error))

    async def _tell_of_trouble(self) -> None:
        """Say once when RabbitMQ is away, and show it as long as it is; the client connects again by itself."""
        while True:
            trouble = self._client.trouble
            if trouble is not None and not self._is_away:
                self._screen.aside(f"· {one_line(trouble)}; the chat goes on when that is over")
            if (trouble is not None) is not self._is_away:
                self._is_away = trouble is not None
                self._go_on(self._doing)
            await asyncio.sleep(_LOOK_SECONDS)

    def _go_on(self, doing: str) -> None:
        self._doing = doing
        self._screen.go_on("no connection" if self._is_away else doing)

    def _complain(self, text: str) -> None:
        self._screen.aside(one_line(text), style=Style.ALARMED)
