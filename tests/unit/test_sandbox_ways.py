"""Which way to a server is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.sandbox.errors import SandboxError, StartError, WayClosedError
from worker.sandbox.server import Server
from worker.sandbox.ways import OWN, first_open


def _open(way: str) -> Callable[[], Server]:
    return lambda: Server("Postgres", "postgresql://localhost/", way)


def _closed(reason: str) -> Callable[[], Server]:
    def way() -> Server:
        raise WayClosedError(reason)

    return way


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _no_way_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEAMTURN_SANDBOX", raising=False)


def test_the_first_open_way_is_taken_and_said(said: list[str]) -> None:
    ways = {"url": _closed("no URL"), "docker": _open("in Docker"), "binaries": _open("binaries")}
    assert first_open("Postgres", ways, said.append).way == "in Docker"
    assert said == ["Postgres: in Docker"]


def test_a_forced_way_is_the_only_one(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("TEAMTURN_SANDBOX", "binaries")
    assert first_open("Postgres", {"url": _open("URL"), "binaries": _open("ours")}, said.append).way == "ours"
    with pytest.raises(SandboxError, match="No Postgres could be had: nothing here"):
        first_open("Postgres", {"url": _open("URL"), "binaries": _closed("nothing here")}, said.append)


def test_a_forced_way_that_this_server_lacks_leaves_all(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("TEAMTURN_SANDBOX", "wheel")
    assert first_open("RabbitMQ", {"binaries": _open("ours")}, said.append).way == "ours"


def test_who_crashes_servers_passes_over_those_of_others(said: list[str]) -> None:
    ways = {"url": _open("URL"), "docker": _open("in Docker"), "binaries": _open("ours")}
    assert first_open("Postgres", ways, said.append, OWN).way == "ours"


def test_who_crashes_servers_says_that_a_forced_way_is_somebody_elses(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("TEAMTURN_SANDBOX", "url")
    with pytest.raises(SandboxError, match=r"'url' can't be used here: .* one of binaries, wheel, packages"):
        first_open("Postgres", {"url": _open("URL"), "binaries": _open("ours")}, said.append, OWN)


def test_an_unknown_forced_way_is_named_with_those_that_exist(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("TEAMTURN_SANDBOX", "dcoker")
    with pytest.raises(SandboxError, match=r"'dcoker' .* url, docker, binaries, wheel, packages"):
        first_open("Postgres", {"url": _open("URL")}, said.append)


def test_no_open_way_is_one_sentence_with_every_reason_and_what_helps(said: list[str]) -> None:
    with pytest.raises(SandboxError) as caught:
        first_open("RabbitMQ", {"url": _closed("no URL"), "binaries": _closed("no binaries")}, said.append)
    assert str(caught.value).startswith("No RabbitMQ could be had: no URL; no binaries. ")
    assert "apt-get install rabbitmq-server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_there_but_does_not_start_is_not_passed_over(said: list[str]) -> None:
    def broken() -> Server:
        raise StartError("rabbitmq ended with exit code 1:", "  its log")

    with pytest.raises(StartError, match="its log"):
        first_open("RabbitMQ", {"binaries": broken, "packages": _open("packages")}, said.append)
