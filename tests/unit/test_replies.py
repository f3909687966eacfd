"""Publishing replies: where each goes, and with which properties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from aio_pika import DeliveryMode, Message

from tests.unit.examples import A_DIRECT_ADDRESS, FakeMessage, a_delivery, a_request
from worker.intake.delivery import ChannelLife
from worker.intake.topology import Topology
from worker.replies import replies
from worker.replies.direct import DirectReplies
from worker.replies.publisher import Publisher, Unroutable
from worker.replies.replies import ReplyAddresses, ReplyPublisher


@pytest.mark.parametrize(
    ("reply_to", "pattern", "allowed"),
    [
        (None, "", False),
        ("", "", False),
        ("amq.rabbitmq.reply-to.g1h2AA5yZXBseUA4", "", True),
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", "", True),
        ("my-replies", "", False),
        ("amq.direct", "", False),
        ("xamq.gen-1", "", False),
        ("my-replies", r"my-.*", True),
        ("not-my-replies", r"my-.*", False),
        ("my-replies-too", r"my-replies", False),
        ("my-replies\nx", r"my-replies.?", False),
        ("teamturn.requests.0", ".*", False),
        ("teamturn.dead", ".*", False),
        ("teamturn.results", r"teamturn\..*", False),
        ("teamturn.", ".*", False),
        ("teamturn", ".*", True),
        ("teamturn2.replies", ".*", True),
        ("amq.rabbitmq.reply-to.x", "nothing", True),
    ],
)
def test_a_reply_goes_only_where_the_contract_allows_it(
    reply_to: str | None,
    pattern: str,
    allowed: bool,  # noqa: FBT001 - a case
) -> None:
    assert ReplyAddresses("teamturn", pattern).allowed(reply_to) is allowed


def test_another_prefix_s_queues_are_not_ours_to_protect_and_ours_are() -> None:
    addresses = ReplyAddresses("batch", ".*")
    assert addresses.allowed("teamturn.results")
    assert not addresses.allowed("batch.results")


@dataclass
class _Published:
    """One message as it was given to the broker."""

    message: Message
    exchange: str
    routing_key: str
    mandatory: bool


class _Broker:
    """Confirms what is published, but for queues that are not there."""

    def __init__(self, *missing: str) -> None:
        self.missing = list(missing)
        self.published: list[_Published] = []
        self.doubted = 0

    async def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        wanted: Callable[[], bool],
        most_tries: int | None = None,
        alone: bool = False,  # noqa: ARG002 - it has one message at a time anyway
    ) -> bool:
        assert (most_tries is None) == (exchange != ""), "only what a producer named is given up"
        if not wanted():
            return False
        if routing_key in self.missing:
            raise Unroutable(routing_key)
        self.published.append(_Published(message, exchange, routing_key, mandatory))
        return True

    def doubt(self) -> None:
        self.doubted += 1
        self.missing.clear()


async def _published(
    broker: _Broker,
    *,
    pattern: str = "",
    life: ChannelLife | None = None,
    request: dict[str, Any] | None = None,
    **properties: Any,
) -> bool:
    publisher = cast("Publisher", broker)
    addresses = ReplyAddresses("teamturn", pattern)
    direct = DirectReplies(publisher, publisher)
    topology = Topology("teamturn", 4)
    replies = ReplyPublisher(publisher, publisher, direct, topology, addresses, largest_bytes=1_000_000, schema="ai")
    delivery = a_delivery(FakeMessage(**properties), life=life)
    return await replies.publish(b'{"status": "COMPLETED"}', a_request(**request or {}), delivery)


async def test_a_reply_is_the_stored_bytes_with_the_contract_s_properties() -> None:
    broker = _Broker()
    assert await _published(broker, correlation_id="c1")
    (one,) = broker.published
    assert one.message.body == b'{"status": "COMPLETED"}'
    assert (one.message.message_id, one.message.correlation_id) == ("r1", "c1")
    assert (one.message.type, one.message.content_type) == ("run.reply", "application/json")
    assert one.message.delivery_mode is DeliveryMode.PERSISTENT


@pytest.mark.parametrize("correlation_id", [None, ""])
async def test_without_a_correlation_id_the_run_id_is_it(correlation_id: str | None) -> None:
    broker = _Broker()
    await _published(broker, correlation_id=correlation_id)
    assert broker.published[0].message.correlation_id == "r1"


@pytest.mark.parametrize("kind", ["team", "agent", "workflow"])
async def test_without_a_reply_to_it_goes_to_the_results_under_its_target(kind: str) -> None:
    broker = _Broker()
    await _published(broker, request={"team_id": ..., f"{kind}_id": "one"})
    (one,) = broker.published
    assert (one.exchange, one.routing_key, one.mandatory) == ("teamturn.results", f"{kind}.one", True)


async def test_a_direct_reply_is_not_mandatory_since_rabbitmq_returns_those_of_a_living_requester() -> None:
    broker = _Broker()
    await _published(broker, reply_to=A_DIRECT_ADDRESS)
    (one,) = broker.published
    assert (one.exchange, one.routing_key, one.mandatory) == ("", A_DIRECT_ADDRESS, False)


async def test_a_reply_to_a_made_up_direct_address_goes_to_the_results() -> None:
    broker = _Broker()
    assert await _published(broker, reply_to="amq.rabbitmq.reply-to.abc")
    assert [one.exchange for one in broker.published] == ["teamturn.results"]


async def test_a_reply_to_an_allowed_queue_goes_there() -> None:
    broker = _Broker()
    await _published(broker, reply_to="my-replies", pattern="my-.*")
    (one,) = broker.published
    assert (one.exchange, one.routing_key, one.mandatory) == ("", "my-replies", True)


@pytest.mark.parametrize("reply_to", ["elsewhere", "teamturn.requests.0", "teamturn.dead"])
async def test_a_reply_to_a_queue_that_is_not_allowed_goes_to_the_results(reply_to: str) -> None:
    broker = _Broker()
    assert await _published(broker, reply_to=reply_to)
    assert [one.exchange for one in broker.published] == ["teamturn.results"]


async def test_a_reply_to_a_queue_that_is_gone_goes_to_the_results() -> None:
    broker = _Broker("amq.gen-gone")
    assert await _published(broker, reply_to="amq.gen-gone")
    assert [one.routing_key for one in broker.published] == ["team.t1"]


async def test_where_the_results_queue_is_missing_it_is_declared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_UNROUTABLE_SECONDS", 0.0)
    broker = _Broker("team.t1")
    assert await _published(broker)
    assert broker.doubted == 1
    assert len(broker.published) == 1


@pytest.mark.parametrize("reply_to", [None, "amq.gen-1", A_DIRECT_ADDRESS])
async def test_who_lost_the_delivery_does_not_reply(reply_to: str | None) -> None:
    broker, life = _Broker(), ChannelLife()
    life.end()
    assert not await _published(broker, life=life, reply_to=reply_to)
    assert broker.published == []


@pytest.mark.parametrize("target", ["x" * 255, "é" * 127, "日" * 85])
async def test_the_routing_key_of_the_longest_id_is_one_that_amqp_takes(target: str) -> None:
    broker = _Broker()
    await _published(broker, request={"team_id": target})
    key = broker.published[0].routing_key
    assert len(key.encode()) <= 255
    assert f"team.{target}".startswith(key)
