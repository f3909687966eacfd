"""The schedule of `deploy/chaos`."""

from __future__ import annotations

from collections import Counter

from tests.chaos.plan import Fault, Plan


def test_a_seed_is_one_schedule() -> None:
    assert Plan(600, seed=7).schedule() == Plan(600, seed=7).schedule()
    assert Plan(600, seed=7).schedule() != Plan(600, seed=8).schedule()


def test_ten_minutes_have_what_is_asked_of_them() -> None:
    planned = Counter(one.fault for one in Plan(600, seed=1).schedule())
    kills = sum(number for fault, number in planned.items() if fault.startswith("kill"))
    assert kills >= 80
    assert planned[Fault.BROKER_RESTART] >= 6
    assert planned[Fault.POSTGRES_RESTART] >= 6


def test_every_run_has_every_fault_in_the_middle_of_the_load() -> None:
    planned = Plan(20, seed=1).schedule()
    assert {one.fault for one in planned} == set(Fault)
    assert all(1 <= one.at <= 19 for one in planned)
    assert planned == sorted(planned, key=lambda one: one.at)
