"""Who consumes what: one owner each, balanced, and no partition moves that need not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fleet.assignment import assign

_partitions = st.integers(1, 256)
_members = st.sets(st.integers(1, 2**31 - 1), min_size=1, max_size=40)
_previous = st.dictionaries(st.integers(0, 255), st.integers(1, 60))


def _moved(before: dict[int, int], after: dict[int, int]) -> set[int]:
    return {partition for partition in after if before.get(partition) != after[partition]}


@given(_partitions, _members, _previous)
def test_every_partition_has_one_owner_who_is_a_member(
    partitions: int, members: set[int], previous: dict[int, int]
) -> None:
    owners = assign(partitions, members, previous)
    assert sorted(owners) == list(range(partitions))
    assert set(owners.values()) <= members


@given(_partitions, _members, _previous)
def test_shares_differ_by_at_most_one(partitions: int, members: set[int], previous: dict[int, int]) -> None:
    shares = Counter(assign(partitions, members, previous).values())
    counts = [shares[member] for member in members]
    assert max(counts) - min(counts) <= 1


@given(_partitions, _members, _previous)
def test_it_is_settled_at_once_and_whatever_the_order_of_the_members(
    partitions: int, members: set[int], previous: dict[int, int]
) -> None:
    owners = assign(partitions, members, previous)
    assert assign(partitions, members, owners) == owners
    assert assign(partitions, sorted(members, reverse=True), previous) == owners


@given(_partitions, _members, st.integers(1, 2**31 - 1), _previous)
def test_a_join_moves_only_what_the_new_member_gets(
    partitions: int, members: set[int], joining: int, previous: dict[int, int]
) -> None:
    before = assign(partitions, members - {joining}, previous) if members - {joining} else {}
    after = assign(partitions, members | {joining}, before)
    if before:
        assert {after[partition] for partition in _moved(before, after)} <= {joining}
        assert len(_moved(before, after)) == partitions // len(members | {joining})


@given(_partitions, _members, _previous, st.data())
def test_a_leave_moves_only_what_the_leaver_had(
    partitions: int, members: set[int], previous: dict[int, int], data: st.DataObject
) -> None:
    before = assign(partitions, members, previous)
    leaving = data.draw(st.sampled_from(sorted(members)))
    after = assign(partitions, members - {leaving}, before)
    if after:
        assert _moved(before, after) == {partition for partition, owner in before.items() if owner == leaving}


@given(_partitions, _members, _members, _previous)
def test_no_balanced_assignment_would_move_fewer(
    partitions: int, before: set[int], after: set[int], previous: dict[int, int]
) -> None:
    held = assign(partitions, before, previous)
    owners = assign(partitions, after, held)
    share, larger = divmod(partitions, len(after))
    kept = sorted((Counter(held.values())[member] for member in after), reverse=True)
    most_kept = sum(min(count, share + (rank < larger)) for rank, count in enumerate(kept))
    assert len(_moved(held, owners)) == partitions - most_kept


@pytest.mark.parametrize(("members", "idle"), [({1, 2, 3}, 1), ({1, 2, 3, 4, 5}, 3)])
def test_more_members_than_partitions_stand_by(members: set[int], idle: int) -> None:
    owners = assign(2, members, {})
    assert len(members - set(owners.values())) == idle


def test_without_members_nobody_owns_anything() -> None:
    assert assign(4, [], {0: 1}) == {}
