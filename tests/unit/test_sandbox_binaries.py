"""Where the servers' programs are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.sandbox.binaries import PostgresBinaries, RabbitmqBinaries, find_postgres, find_rabbitmq, rabbitmq_in
from worker.sandbox.errors import SandboxError, WayClosedError


def _program(path: Path, output: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def _postgres(directory: Path, version: str) -> Path:
    _program(directory / "initdb")
    _program(directory / "postgres", f"postgres (PostgreSQL) {version}")
    return directory


def test_debians_inner_rabbitmq_script_comes_before_the_wrapper_on_path(tmp_path: Path) -> None:
    on_path = tmp_path / "usr/sbin"
    _program(on_path / "rabbitmq-server")
    epmd = _program(on_path / "epmd")
    inner = _program(tmp_path / "usr/lib/rabbitmq/bin/rabbitmq-server")
    assert find_rabbitmq(str(on_path), tmp_path) == RabbitmqBinaries(inner, epmd)


def test_homebrew_is_searched_after_path(tmp_path: Path) -> None:
    server = _program(tmp_path / "opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server")
    epmd = _program(tmp_path / "opt/homebrew/opt/erlang/bin/epmd")
    assert find_rabbitmq("", tmp_path) == RabbitmqBinaries(server, epmd)
    elsewhere = _program(tmp_path / "bin/rabbitmq-server")
    assert find_rabbitmq(str(tmp_path / "bin"), tmp_path).server == elsewhere


def test_a_machine_without_rabbitmq_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WayClosedError, match="rabbitmq-server is not on this machine"):
        find_rabbitmq("", tmp_path)
    _program(tmp_path / "usr/lib/rabbitmq/bin/rabbitmq-server")
    with pytest.raises(WayClosedError, match="epmd is not on PATH"):
        find_rabbitmq("", tmp_path)


def test_a_named_directory_has_the_server_and_the_port_mapper(tmp_path: Path) -> None:
    server, epmd = _program(tmp_path / "rabbitmq-server"), _program(tmp_path / "epmd")
    assert rabbitmq_in(tmp_path) == RabbitmqBinaries(server, epmd)


@pytest.mark.parametrize(("there", "missing"), [("rabbitmq-server", "epmd"), ("epmd", "rabbitmq-server")])
def test_a_named_directory_that_lacks_one_is_told_and_closes_no_way(tmp_path: Path, there: str, missing: str) -> None:
    _program(tmp_path / there)
    with pytest.raises(SandboxError, match=f"TEAMTURN_RABBITMQ_BIN .*/{missing} is no program") as caught:
        rabbitmq_in(tmp_path)
    assert not isinstance(caught.value, WayClosedError), "the next way would be another RabbitMQ"


def test_the_newest_postgres_is_taken_by_number_not_by_name(tmp_path: Path) -> None:
    for version in ("9.6.24", "14.2", "15.18"):
        _postgres(tmp_path / f"usr/lib/postgresql/{version.partition('.')[0]}/bin", version)
    newest = _postgres(tmp_path / "usr/pgsql-16/bin", "16.1")
    assert find_postgres("", tmp_path) == PostgresBinaries(newest, 16)


def test_postgres_is_found_through_pg_config(tmp_path: Path) -> None:
    directory = _postgres(tmp_path / "somewhere/bin", "17.0 (Debian 17.0-1)")
    _program(tmp_path / "bin/pg_config", str(directory))
    assert find_postgres(str(tmp_path / "bin"), tmp_path) == PostgresBinaries(directory, 17)


def test_a_postgres_that_is_too_old_is_named(tmp_path: Path) -> None:
    _postgres(tmp_path / "usr/lib/postgresql/13/bin", "13.4")
    with pytest.raises(WayClosedError, match=r"the newest PostgreSQL here is 13, .* and 14 is needed"):
        find_postgres("", tmp_path)


def test_a_client_without_a_server_is_no_postgres(tmp_path: Path) -> None:
    _program(tmp_path / "usr/lib/postgresql/15/bin/psql")
    _program(tmp_path / "usr/lib/postgresql/15/bin/initdb")
    with pytest.raises(WayClosedError, match="not on this machine"):
        find_postgres("", tmp_path)
