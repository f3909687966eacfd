"""What `teamturn doctor` makes of its readings: pure judgements, each a check as a value."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.checks import Check, Verdict
from worker.intake.partitions import LONGEST_HELD_SECONDS
from worker.sessions.lock_table import SHARE

OLDEST_RABBITMQ: Final = (3, 10)
_SKEW_WARNING_SECONDS: Final = 2.0
_SKEW_FAILURE_SECONDS: Final = 30.0
_LOOKING_SECONDS: Final = 60.0
"""RabbitMQ looks once a minute, a worker more often."""
_MOST_NAMED: Final = 3
_THIS_MACHINE: Final = frozenset({"localhost", "::1"})


def ok(name: str, says: str) -> Check:
    """Return a check that found what it should."""
    return Check(name=name, verdict=Verdict.OK, says=says)


def warning(name: str, says: str, advice: str) -> Check:
    """Return a check that found something to do."""
    return Check(name=name, verdict=Verdict.WARNING, says=says, advice=advice)


def failure(name: str, says: str, advice: str | None = None) -> Check:
    """Return a check that failed; the sentence of an error of ours says itself what to do."""
    return Check(name=name, verdict=Verdict.FAILURE, says=says, advice=advice)


def skipped(name: str, needs: str) -> Check:
    """Return a check that could not be made."""
    return Check(name=name, verdict=Verdict.SKIPPED, says=f"it needs {needs}")


def unknown_settings(name: str, unknown: Sequence[str]) -> Check:
    """Judge the variables that look like settings and are none."""
    if not unknown:
        return ok(name, "they can be read")
    return warning(name, f"no effect: {', '.join(unknown)}", "look for a typing mistake; the README has the table")


def rabbitmq(name: str, where: str, product: str, version: str) -> Check:
    """Judge the broker by what it says of itself."""
    parts = version.split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdecimal())
    if product != "RabbitMQ" or len(number) < len(OLDEST_RABBITMQ):
        return warning(name, f"{product} {version} at {where} answers", "teamturn is tested with RabbitMQ")
    if number < OLDEST_RABBITMQ:
        oldest = ".".join(map(str, OLDEST_RABBITMQ))
        return failure(name, f"RabbitMQ {version} at {where} is too old", f"install {oldest} or newer")
    return ok(name, f"RabbitMQ {version} at {where} answers")


@dataclass(frozen=True, slots=True)
class ConnectionReadings:
    """What was seen on one connection, again and again, while another was used in between."""

    announced: int
    """The process that Postgres named when the connection was made."""
    pids: tuple[int, ...]
    """The processes that served its statements, in and out of transactions."""
    limits_arrived: bool
    """Whether the limits of a lane are in force."""
    over_tcp: bool


def connections(
    name: str, one: ConnectionReadings, other: ConnectionReadings, *, lock_kept: bool, lost_statements: bool = False
) -> Check:
    """Judge whether two connections lead each to a process of its own, and only that: no pooler in between."""
    if lost_statements or len(set(one.pids)) > 1 or len(set(other.pids)) > 1 or set(one.pids) & set(other.pids):
        found = "a connection is served by changing processes: a pooler shares them out by transactions"
    elif (one.announced, other.announced) != (one.pids[0], other.pids[0]):
        found = "another process than the announced one serves a connection: there is a pooler in between"
    elif not (one.limits_arrived and other.limits_arrived):
        found = "idle_session_timeout does not arrive: there is a pooler in between, or a proxy that leaves it out"
    elif not lock_kept:
        found = "an advisory lock is lost between two statements: there is a pooler in between"
    elif not (one.over_tcp and other.over_tcp):
        advice = "give an address with TCP in TEAMTURN_POSTGRES_URL"
        return warning(name, "they are Unix sockets: a frozen worker keeps its sessions for longer", advice)
    else:
        return ok(name, f"two are direct: backends {one.pids[0]} and {other.pids[0]}")
    return failure(name, found, "give the direct address of Postgres in TEAMTURN_POSTGRES_URL: session locks need it")


def encryption(name: str, hosts: Collection[str | None], *, protocol: str | None, verified: bool, advice: str) -> Check:
    """Judge whether a connection is encrypted (by which `protocol`), and its server known to be the one that is meant.

    What stays on this machine needs neither: a host that is None is a Unix socket.
    """
    stays = all(host is None or host in _THIS_MACHINE or host.startswith(("127.", "/")) for host in hosts)
    how = "not encrypted" if protocol is None else f"encrypted ({protocol})"
    if protocol is not None and not verified:
        how += ", and the server's certificate is not verified"
    if stays or (protocol is not None and verified):
        where = "; it does not leave this machine" if stays else ", and the server's certificate and name are verified"
        return ok(name, how + where)
    return warning(name, f"{how}: whoever is in between can read or change what is sent", advice)


def clock(name: str, offset_seconds: float, round_trip_seconds: float) -> Check:
    """Judge by how much Postgres's clock is ahead of this machine's; half the round trip is not known."""
    skew = max(abs(offset_seconds) - round_trip_seconds / 2, 0.0)
    says = f"Postgres's clock is {abs(offset_seconds):.1f} s {'ahead of' if offset_seconds > 0 else 'behind'} this one"
    advice = "have both machines set their clocks by NTP: deadlines go by Postgres's, times in replies by a worker's"
    if skew > _SKEW_FAILURE_SECONDS:
        return failure(name, says, advice)
    if skew > _SKEW_WARNING_SECONDS:
        return warning(name, says, advice)
    return ok(name, f"Postgres's clock and this one agree within {max(skew, round_trip_seconds, 0.001):.3f} s")


def lock_table(name: str, locks: int, workers: int, concurrent_turns: int) -> Check:
    """Judge whether all sessions that the live workers may execute at once can be locked."""
    share, needed = int(locks * SHARE), max(workers, 1) * concurrent_turns
    what = f"{max(workers, 1)} worker{'s' * (workers > 1)} x {concurrent_turns} turns"
    if share >= needed:
        return ok(name, f"room for {share} sessions of {locks} locks; {what} need {needed}")
    return warning(
        name,
        f"room for {share} sessions of {locks} locks, and {what} may need {needed}: the others wait",
        f"raise max_locks_per_transaction until times max_connections it is {math.ceil(needed / SHARE)}, or lower "
        "TEAMTURN_MAX_CONCURRENT_TURNS",
    )


def acknowledgement(name: str, timeout_seconds: float | None, *, unreadable: str | None = None) -> Check:
    """Judge RabbitMQ's acknowledgement time-out (None: there is none), or what is known if it is `unreadable`.

    A worker gives back what it holds for long, so that it has to be above that time only.
    """
    needed = LONGEST_HELD_SECONDS + _LOOKING_SECONDS
    why = f"{_minutes(needed)}: workers give back by then what they hold"
    advice = "raise consumer_timeout in rabbitmq.conf: else RabbitMQ takes back what runs long, again and again"
    if unreadable is not None:
        says = f"it can't be read from here ({unreadable}); RabbitMQ's default is 30 min"
        return ok(name, f"{says}, and it must be above {why}")
    if timeout_seconds is None:
        return ok(name, "there is no acknowledgement time-out")
    if timeout_seconds <= needed:
        return warning(name, f"{_minutes(timeout_seconds)} is not above {why}", advice)
    return ok(name, f"{_minutes(timeout_seconds)} is above {why}")


def results(name: str, queue: str, before: int, after: int, consumers: int) -> Check:
    """Judge the results queue by two looks at how many replies wait there."""
    if consumers or not after:
        return ok(name, f"{after} replies wait in {queue}; consumers: {consumers}")
    growing = f", and {after - before} more each second" if after > before else ""
    return warning(
        name,
        f"{after} replies wait in {queue}{growing}, and nobody consumes them",
        f"consume {queue}, or have producers name a reply_to: an unread queue fills the disk, and all is blocked then",
    )


def dead_letters(name: str, queue: str, count: int) -> Check:
    """Judge how many dead letters there are."""
    if not count:
        return ok(name, f"none in {queue}")
    return warning(name, f"{count} in {queue}", "look at them: teamturn dead list")


def problems(name: str, found: Sequence[str], fine: str, advice: str) -> Check:
    """Judge a list of sentences, each a problem: of many, the first are named."""
    if not found:
        return ok(name, fine)
    more = f", and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return failure(name, "; ".join(found[:_MOST_NAMED]) + more, advice)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} min"
