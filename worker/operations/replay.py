"""Replaying a dead letter: its request is published again as it was sent, and leaves the queue once that is confirmed.

    reopen    a run that is stored as ERROR makes way, in one transaction under its session's lock
    publish   the request to its slot, persistent, mandatory, with a publisher confirm
    remove    the dead letter is acknowledged

Interrupted before the last of these, it is in both places, and that is harmless: its run_id is the same, and what is
reopened once is not reopened again.
"""

from __future__ import annotations

from datetime import UTC, datetime

import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from schemas.dead_letters import DeadLetterDone
from schemas.requests import RunRequest
from worker.errors import ClaimOutdated, RequestRefused, StatementRefused
from worker.intake.delivery import message_id_of
from worker.intake.forwarding import copy_with
from worker.intake.reading import read_request
from worker.intake.slots import slot_of
from worker.operations.dead_letter_queue import DeadLetterQueue
from worker.operations.dead_letters import dead_letter, headers_as_sent
from worker.sessions.reopening import Outcome, Reopening, reopen


class _LeftWhereItIs(Exception):
    """It is not replayed, and the message says why."""


async def replay(
    queue: DeadLetterQueue,
    message: AbstractIncomingMessage,
    database: asyncpg.Connection,
    *,
    largest_bytes: int,
    dry_run: bool,
) -> DeadLetterDone:
    """Replay one dead letter; return what was done, or with `dry_run` what would be."""
    letter_id = dead_letter(message).id
    try:
        request = _request_in(message, largest_bytes)
        detail = _told(await _reopened(database, request, only_look=dry_run))
    except _LeftWhereItIs as why:
        return DeadLetterDone(id=letter_id, action="skipped", detail=str(why), dry_run=dry_run)
    if not dry_run:
        copy = copy_with(headers_as_sent(message), {}, message)
        await queue.publish(copy, slot_of(request.session_id))
        await queue.remove(message)
    return DeadLetterDone(id=letter_id, action="replayed", detail=detail, dry_run=dry_run)


def _request_in(message: AbstractIncomingMessage, largest_bytes: int) -> RunRequest:
    try:
        request = read_request(message.body, message_id_of(message), largest_bytes=largest_bytes)
    except RequestRefused as refusal:
        raise _LeftWhereItIs(f"it would only come back: {refusal.code.value}, {refusal.message}") from None
    except Exception as error:
        # What no worker could read either; it must not keep the others from being replayed.
        raise _LeftWhereItIs(f"it would only come back: reading it fails with {type(error).__name__}") from error
    if request.deadline is not None and request.deadline <= datetime.now(UTC):
        raise _LeftWhereItIs("it would only be refused: its deadline has passed")
    return request


async def _reopened(database: asyncpg.Connection, request: RunRequest, *, only_look: bool) -> Reopening:
    try:
        return await reopen(database, request, only_look=only_look)
    except (StatementRefused, ClaimOutdated) as error:
        raise _LeftWhereItIs(f"Postgres refuses to reopen its run: {error}") from error


def _told(reopening: Reopening) -> str | None:
    match reopening.outcome:
        case Outcome.UNKNOWN:
            return None
        case Outcome.ANSWERED:
            return "it was answered, and gets the same reply again"
        case Outcome.REOPENED:
            where = "" if reopening.session_exists else ", of a new session: the old one was deleted"
            return f"its failed run is reopened for attempt {reopening.attempt}{where}"
        case Outcome.FOREIGN:
            raise _LeftWhereItIs("it would only be refused: its run_id is another request's")
        case Outcome.BUSY:
            raise _LeftWhereItIs("a worker is at a turn of its session; try again when that has ended")
