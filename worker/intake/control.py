"""Control messages: `{prefix}.control` is read by all workers of a prefix, each message by one of them.

What a message says is stored in Postgres before it is acknowledged; whichever worker is at the run, or will be, finds
it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from pydantic import ValidationError

from schemas.control import CancelRequest
from schemas.errors import ErrorCode
from worker.errors import RequestRefused, StatementRefused, StoreUnavailable
from worker.intake.delivery import Delivery
from worker.intake.reading import parsed_object, reason_of

LARGEST_BYTES: Final = 8_192
"""Of a control message: three ids, and then some."""
_RETRY_SECONDS: Final = 1.0

Store = Callable[[CancelRequest], Awaitable[None]]
Bury = Callable[[Delivery, RequestRefused], None]

_log = structlog.get_logger()


class Control:
    """Stores what control messages say."""

    def __init__(self, store: Store, bury: Bury) -> None:
        self._store = store
        self._bury = bury
        self._storing: set[asyncio.Task[None]] = set()

    def received(self, delivery: Delivery) -> None:
        """Take one delivery. It doesn't wait."""
        try:
            cancel = read_cancel(delivery.message.body)
        except RequestRefused as refusal:
            self._bury(delivery, refusal)
            return
        task = asyncio.create_task(self._stored(delivery, cancel), name=f"control {cancel.run_id}")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def stop(self) -> None:
        """Give up what is not stored yet: it is delivered again."""
        for task in self._storing:
            task.cancel()
        await asyncio.gather(*self._storing, return_exceptions=True)

    async def _stored(self, delivery: Delivery, cancel: CancelRequest) -> None:
        while delivery.alive:
            try:
                await self._store(cancel)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_SECONDS)
            except StatementRefused as error:
                self._bury(delivery, RequestRefused(ErrorCode.INVALID_REQUEST, f"it can't be stored: {error}"))
                return
            else:
                _log.info("cancel_received", run_id=cancel.run_id, session_id=cancel.session_id)
                await delivery.ack()
                return


def read_cancel(body: bytes) -> CancelRequest:
    """Read a control message. Raises RequestRefused, as `read_request` does."""
    if len(body) > LARGEST_BYTES:
        raise RequestRefused(
            ErrorCode.REQUEST_TOO_LARGE, f"the body has {len(body)} bytes; the limit is {LARGEST_BYTES}"
        )
    try:
        return CancelRequest.model_validate(parsed_object(body))
    except ValidationError as error:
        raise RequestRefused(ErrorCode.INVALID_REQUEST, reason_of(error)) from None
