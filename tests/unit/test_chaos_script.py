"""What the chaos teams, their model and the checks agree on."""

from __future__ import annotations

import pytest

from tests.chaos.script import Order, answer_of, implied, logical_step, seconds_of, step_of
from tests.support.model_wire import Calls, Says


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("model.request#1", "leader/1"),
        ("model.request#2", "leader/2"),
        ("buyer[5f0e7d38]/model.request#1", "buyer/1"),
        ("reader[5f0e7d38]/model.request#1", "reader/1"),
        ("buyer[5f0e7d38]/tool:pay@pay-1#1", "buyer/pay"),
        ("first#1", "first"),
        ("pay#1", "pay"),
    ],
)
def test_the_journals_keys_are_steps_of_the_script(key: str, step: str) -> None:
    assert logical_step(key) == step


@pytest.mark.parametrize("key", ["first#2", "buyer/model.request#1", "buyer[5f0e7d38]/failure#1"])
def test_a_key_of_the_journal_that_is_no_step_is_not_passed_over(key: str) -> None:
    with pytest.raises(ValueError, match="no step of the script is called so"):
        logical_step(key)


def test_a_step_implies_all_that_it_was_told_of() -> None:
    assert implied("first") == frozenset()
    assert implied("last") == {"first", "pay"}
    assert implied("buyer/pay") == {"buyer/1", "leader/1"}
    assert implied("leader/2") == {"reader/1", "buyer/1", "buyer/pay", "buyer/2", "leader/1"}


def test_an_order_is_read_as_it_was_written() -> None:
    order = Order("run", part="buyer", hold="pay", poison=True)
    assert Order.read(order.text) == order


def test_the_leader_gives_both_members_their_tasks_and_then_says_something() -> None:
    order = Order("run", hold="buyer/pay")
    first = answer_of(order, step_of("leader", order, results=0))
    assert isinstance(first, Calls)
    tasks = [Order.read(call[1]["task"]) for call in first.calls if not isinstance(call[1], str)]
    assert tasks == [Order("run", part="reader", hold="buyer/pay"), Order("run", part="buyer", hold="buyer/pay")]
    assert answer_of(order, step_of("leader", order, results=3)) == Says("leader/2 of run")


def test_the_model_thinks_about_the_same_as_long_as_before() -> None:
    assert seconds_of("run", "first") == seconds_of("run", "first")
    assert len({seconds_of(f"run {number}", "first") for number in range(20)}) > 10
