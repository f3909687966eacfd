"""The intake: what becomes of each delivery, from the queue to its session's mailbox."""

from __future__ import annotations

import structlog

from schemas.errors import ErrorCode
from worker.errors import RequestRefused
from worker.intake.delivery import Delivery, RequestDelivery
from worker.intake.forwarding import PASSED_ON, Forwarder
from worker.intake.mailbox import Mailboxes
from worker.intake.reading import read_request
from worker.intake.slots import partition_of, slot_of
from worker.intake.topology import Topology
from worker.measures import UNMEASURED, Measures

_log = structlog.get_logger()


class Intake:
    """Sorts deliveries: into a mailbox, on to another partition, or to the dead letters."""

    def __init__(
        self,
        topology: Topology,
        mailboxes: Mailboxes,
        forwarder: Forwarder,
        *,
        largest_bytes: int,
        measures: Measures = UNMEASURED,
    ) -> None:
        self._measures = measures
        self._topology = topology
        self._mailboxes = mailboxes
        self._forwarder = forwarder
        self._largest_bytes = largest_bytes

    def received(self, delivery: Delivery) -> None:
        """Sort one delivery. It doesn't wait: the order of a session is the order of these calls."""
        message = delivery.message
        if delivery.redelivered:
            self._measures.redelivered()
        try:
            request = read_request(message.body, delivery.message_id, largest_bytes=self._largest_bytes)
            self._sort(RequestDelivery(delivery, request))
        except RequestRefused as refusal:
            self._forwarder.bury(delivery, refusal)
        except Exception:  # noqa: BLE001 - an unforeseen message must not be the last one that is read
            _log.exception("message_unreadable", queue=delivery.source)
            reason = "the worker failed to read it; see its log"
            self._forwarder.bury(delivery, RequestRefused(ErrorCode.INTERNAL_ERROR, reason))

    def _sort(self, received: RequestDelivery) -> None:
        delivery = received.delivery
        slot = slot_of(received.request.session_id)
        home = self._topology.partition(partition_of(slot, self._topology.partitions))
        if delivery.source == home or delivery.forbidden_property() is not None:
            # With a forbidden property it is refused where it is seen: passed on, it would be dropped or overtaken.
            self._mailboxes.put(received)
        elif PASSED_ON in delivery.headers:
            raise RequestRefused(
                ErrorCode.MISROUTED,
                f"slot {slot} was passed on and arrived at {delivery.source}: the bindings are not those of "
                f"{self._topology.partitions} partitions",
            )
        else:
            self._forwarder.pass_on(delivery, slot)
