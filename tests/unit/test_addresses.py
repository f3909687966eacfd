"""Where a URL of Postgres leads, however it says so."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from worker.sessions.database import servers_of


@pytest.mark.parametrize(
    ("url", "pghost", "servers"),
    [
        ("postgresql://u:p@db:5433/app", "other", [("db", 5433)]),
        ("postgresql://a,b:6432/app", "", [("a", None), ("b", 6432)]),
        ("postgresql:///app?host=db.example", "other", [("db.example", None)]),
        ("postgresql:///app?host=a,b:6432", "", [("a", None), ("b", 6432)]),
        ("postgresql:///app?host=/run/postgresql", "", [("/run/postgresql", None)]),
        ("postgresql:///app", "db.example", [("db.example", None)]),
        ("postgresql:///app", "", [(None, None)]),
    ],
)
def test_a_server_elsewhere_is_not_taken_for_this_machine(
    url: str, pghost: str, servers: list[tuple[str | None, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", pghost)
    assert servers_of(SecretStr(url)) == servers
