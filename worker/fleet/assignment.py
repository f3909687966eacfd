"""Who consumes which partition: the same answer in every worker, from what all of them read. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Member = int
"""A worker, by the number that its membership lock has."""


def assign(partitions: int, members: Collection[Member], previous: Mapping[int, Member]) -> dict[int, Member]:
    """Return each partition's owner: balanced, and as before wherever that is possible.

    Every partition has one owner; shares differ by at most one; and no fewer partitions could change their owner: when
    a member leaves only its own do, when one joins only those that it gets. Without members nobody owns anything.

    Why not rendezvous hashing with a cap, which needs no `previous`: a function of the members alone can't be balanced
    for every set of them and yet move the least, since what a leaver hands on overflows the caps of others.
    """
    if not members:
        return {}
    held: dict[Member, list[int]] = {member: [] for member in sorted(members)}
    for partition in range(partitions):
        if (owner := previous.get(partition)) in held and owner is not None:
            held[owner].append(partition)
    share, larger_shares = divmod(partitions, len(held))
    owners: dict[int, Member] = {}
    room: list[Member] = []
    # Who holds most gets the larger shares: that keeps the most where it is.
    for rank, member in enumerate(sorted(held, key=lambda one: (-len(held[one]), one))):
        may_hold = share + (rank < larger_shares)
        kept = held[member][:may_hold]
        owners |= dict.fromkeys(kept, member)
        room += [member] * (may_hold - len(kept))
    free = (partition for partition in range(partitions) if partition not in owners)
    return owners | dict(zip(free, room, strict=True))
