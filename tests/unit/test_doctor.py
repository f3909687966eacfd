"""What the doctor makes of its readings."""

from __future__ import annotations

import pytest

from schemas.checks import Check, Verdict
from worker.operations import doctor
from worker.operations.doctor import ConnectionReadings

OK, WARNING, FAILURE = Verdict.OK, Verdict.WARNING, Verdict.FAILURE


def readings(
    *pids: int, announced: int | None = None, limits_arrived: bool = True, over_tcp: bool = True
) -> ConnectionReadings:
    return ConnectionReadings(pids[0] if announced is None else announced, pids, limits_arrived, over_tcp)


DIRECT = readings(1, 1, 1)
OTHER = readings(2, 2, 2)


@pytest.mark.parametrize(
    ("one", "other", "lock_kept", "verdict", "says"),
    [
        (DIRECT, OTHER, True, OK, "backends 1 and 2"),
        (readings(1, 3, 1), OTHER, True, FAILURE, "changing processes"),
        (DIRECT, readings(2, 2, 3), True, FAILURE, "changing processes"),
        (DIRECT, readings(1, 1, 1), True, FAILURE, "changing processes"),
        (readings(1, 1, announced=9), OTHER, True, FAILURE, "another process than the announced"),
        (DIRECT, readings(2, 2, announced=9), True, FAILURE, "another process than the announced"),
        (DIRECT, readings(2, 2, limits_arrived=False), True, FAILURE, "idle_session_timeout"),
        (DIRECT, OTHER, False, FAILURE, "advisory lock is lost"),
        (DIRECT, readings(2, 2, over_tcp=False), True, WARNING, "Unix sockets"),
    ],
)
def test_connections_are_direct_or_pooled(
    one: ConnectionReadings, other: ConnectionReadings, *, lock_kept: bool, verdict: Verdict, says: str
) -> None:
    check = doctor.connections("connections", one, other, lock_kept=lock_kept)
    assert check.verdict is verdict
    assert says in check.says


def test_statements_that_are_lost_are_a_pooler_s_doing() -> None:
    check = doctor.connections("connections", DIRECT, OTHER, lock_kept=True, lost_statements=True)
    assert check.verdict is FAILURE
    assert check.advice is not None
    assert "direct address" in check.advice


@pytest.mark.parametrize(
    ("product", "version", "verdict"),
    [
        ("RabbitMQ", "3.10.8", OK),
        ("RabbitMQ", "4.0.5", OK),
        ("RabbitMQ", "4.3.6-rc.1", OK),
        ("RabbitMQ", "3.9.27", FAILURE),
        ("RabbitMQ", "?", WARNING),
        ("LavinMQ", "2.1.0", WARNING),
    ],
)
def test_a_broker_is_new_enough(product: str, version: str, verdict: Verdict) -> None:
    assert doctor.rabbitmq("rabbitmq", "mq:5672", product, version).verdict is verdict


@pytest.mark.parametrize(
    ("offset", "round_trip", "verdict"),
    [
        (0.0, 0.001, OK),
        (1.9, 0.0, OK),
        (-1.9, 0.0, OK),
        (2.1, 0.0, WARNING),
        (-2.1, 0.0, WARNING),
        (2.1, 1.0, OK),
        (29.0, 0.0, WARNING),
        (31.0, 0.0, FAILURE),
        (-31.0, 0.1, FAILURE),
    ],
)
def test_clocks_agree_as_far_as_that_can_be_told(offset: float, round_trip: float, verdict: Verdict) -> None:
    assert doctor.clock("clock", offset, round_trip).verdict is verdict


def test_a_clock_that_is_wrong_says_which_way() -> None:
    assert "30.5 s behind" in doctor.clock("clock", -30.5, 0.0).says
    assert "30.5 s ahead" in doctor.clock("clock", 30.5, 0.0).says


@pytest.mark.parametrize(
    ("locks", "workers", "turns", "verdict"),
    [(6_400, 0, 256, OK), (6_400, 20, 256, OK), (6_400, 21, 256, WARNING), (320, 1, 256, OK), (319, 1, 256, WARNING)],
)
def test_the_lock_table_has_room_for_what_all_workers_may_lock(
    locks: int, workers: int, turns: int, verdict: Verdict
) -> None:
    assert doctor.lock_table("lock table", locks, workers, turns).verdict is verdict


def test_a_lock_table_that_is_too_small_says_how_large_it_has_to_be() -> None:
    check = doctor.lock_table("lock table", 6_400, 25, 256)
    assert check.advice is not None
    assert "8000" in check.advice


@pytest.mark.parametrize(
    ("timeout", "unreadable", "verdict"),
    [
        (1_800.0, None, OK),
        (900.0, None, WARNING),
        (None, None, OK),
        (None, "no rabbitmqctl", OK),
    ],
)
def test_the_acknowledgement_time_out_is_above_what_workers_hold(
    timeout: float | None, unreadable: str | None, verdict: Verdict
) -> None:
    check = doctor.acknowledgement("acknowledgement", timeout, unreadable=unreadable)
    assert check.verdict is verdict
    assert (unreadable or "") in check.says


@pytest.mark.parametrize(
    ("before", "after", "consumers", "verdict", "says"),
    [
        (0, 0, 0, OK, "0 replies"),
        (5, 5, 1, OK, "consumers: 1"),
        (5, 5, 0, WARNING, "nobody consumes"),
        (5, 8, 0, WARNING, "3 more each second"),
        (5, 0, 0, OK, "0 replies"),
    ],
)
def test_results_are_read(before: int, after: int, consumers: int, verdict: Verdict, says: str) -> None:
    check = doctor.results("results", "t.results", before, after, consumers)
    assert check.verdict is verdict
    assert says in check.says


@pytest.mark.parametrize(("count", "verdict"), [(0, OK), (1, WARNING)])
def test_dead_letters_are_to_be_looked_at(count: int, verdict: Verdict) -> None:
    assert doctor.dead_letters("dead letters", "t.dead", count).verdict is verdict


def test_of_many_problems_the_first_are_named() -> None:
    found = [f"problem {number}" for number in range(7)]
    assert doctor.problems("topology", found, "fine", "do").says == "problem 0; problem 1; problem 2, and 4 more"


def test_what_is_wrong_says_what_to_do() -> None:
    wrong: list[Check] = [
        doctor.unknown_settings("settings", ["TEAMTURN_TYPO"]),
        doctor.rabbitmq("rabbitmq", "mq", "RabbitMQ", "3.8.0"),
        doctor.connections("connections", DIRECT, OTHER, lock_kept=False),
        doctor.clock("clock", 100, 0),
        doctor.lock_table("lock table", 1, 1, 1),
        doctor.acknowledgement("acknowledgement", 1),
        doctor.results("results", "q", 1, 1, 0),
        doctor.dead_letters("dead letters", "q", 1),
        doctor.problems("topology", ["missing"], "fine", "do"),
    ]
    assert all(check.verdict is not OK and check.advice for check in wrong)


@pytest.mark.parametrize(
    ("hosts", "protocol", "verified", "verdict", "says"),
    [
        (
            ["db.example"],
            "TLSv1.3",
            True,
            OK,
            "encrypted (TLSv1.3), and the server's certificate and name are verified",
        ),
        (["db.example"], "TLSv1.3", False, WARNING, "not verified"),
        (["db.example"], None, False, WARNING, "not encrypted"),
        (["localhost"], None, False, OK, "does not leave this machine"),
        (["127.0.0.2", "::1", "/run/postgresql", None], None, False, OK, "does not leave this machine"),
        (["localhost", "db.example"], None, False, WARNING, "not encrypted"),
        (["localhost.example"], None, False, WARNING, "not encrypted"),
    ],
)
def test_what_leaves_the_machine_is_to_be_encrypted_and_its_server_known(
    hosts: list[str | None], protocol: str | None, *, verified: bool, verdict: Verdict, says: str
) -> None:
    check = doctor.encryption("rabbitmq tls", hosts, protocol=protocol, verified=verified, advice="use TLS")
    assert check.verdict is verdict
    assert says in check.says
    assert check.advice == (None if verdict is OK else "use TLS")
