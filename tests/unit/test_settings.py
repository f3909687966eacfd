"""Settings: the contract's table of environment variables, and what a wrong one is told."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from worker import broker
from worker.errors import StartupError
from worker.sessions import database
from worker.settings import Settings

_DEFAULTS = {
    "AMQP_URL": "amqp://guest:guest@localhost:5672/",
    "POSTGRES_URL": "postgresql://postgres@localhost:5432/postgres",
    "TEAMS": "",
    "PREFIX": "teamturn",
    "DB_SCHEMA": "ai",
    "PARTITIONS": 16,
    "PREFETCH": 128,
    "MAX_CONCURRENT_TURNS": 256,
    "TURN_TIMEOUT": 600,
    "DRAIN_TIMEOUT": 30,
    "MAX_ATTEMPTS": 3,
    "MAX_REQUEST_BYTES": 1_048_576,
    "REPLY_TO_PATTERN": "",
    "HTTP_PORT": 8080,
    "LOG_LEVEL": "info",
    "LOG_CONTENT": False,
    "TRACE_CONTENT": False,
}
_OTHERS = {
    "AMQP_URL": ("amqps://u:p@rabbit.example:5671/vhost", "amqps://u:p@rabbit.example:5671/vhost"),
    "POSTGRES_URL": ("postgresql://u:p@db/x?sslmode=require", "postgresql://u:p@db/x?sslmode=require"),
    "TEAMS": ("a:b,c:d", "a:b,c:d"),
    "PREFIX": ("batch-1.eu", "batch-1.eu"),
    "DB_SCHEMA": ("_Agents9", "_Agents9"),
    "PARTITIONS": ("256", 256),
    "PREFETCH": ("1", 1),
    "MAX_CONCURRENT_TURNS": ("1", 1),
    "TURN_TIMEOUT": ("0.5", 0.5),
    "DRAIN_TIMEOUT": ("0", 0),
    "MAX_REQUEST_BYTES": ("10", 10),
    "REPLY_TO_PATTERN": (r"my-[a-z]+", r"my-[a-z]+"),
    "HTTP_PORT": ("0", 0),
    "LOG_LEVEL": ("WARNING", "warning"),
    "LOG_CONTENT": ("true", True),
    "TRACE_CONTENT": ("true", True),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("TEAMTURN_"):
            monkeypatch.delenv(name)


def _value(name: str) -> Any:
    value = getattr(Settings.read(), name.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(f"TEAMTURN_{name}", value)
    with pytest.raises(StartupError) as refused:
        Settings.read()
    message = str(refused.value)
    assert f"TEAMTURN_{name}" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(_DEFAULTS.keys()))
def test_what_is_not_set_has_the_contract_s_default(name: str) -> None:
    assert _value(name) == _DEFAULTS[name]


@pytest.mark.parametrize("name", sorted(_DEFAULTS.keys()))
def test_what_is_set_to_nothing_has_its_default_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TEAMTURN_{name}", "")
    assert _value(name) == _DEFAULTS[name]


@pytest.mark.parametrize("name", _OTHERS)
def test_what_is_set_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = _OTHERS[name]
    monkeypatch.setenv(f"TEAMTURN_{name}", text)
    assert _value(name) == value


def test_every_setting_is_in_the_contract_s_table() -> None:
    assert {name.upper() for name in Settings.model_fields} == _DEFAULTS.keys()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql+psycopg://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+psycopg2://u@h/d", "postgresql://u@h/d"),
        ("postgresql+asyncpg://u@h:5/d?a=b", "postgresql://u@h:5/d?a=b"),
        ("postgres+psycopg_async://h/d", "postgres://h/d"),
        ("postgres://h/d", "postgres://h/d"),
        ("postgresql://u:p@h1:5432,h2,[::1]:5433/d", "postgresql://u:p@h1:5432,h2,[::1]:5433/d"),
        ("postgresql://u:a+b%3A%2F%2Fc@h/d", "postgresql://u:a+b%3A%2F%2Fc@h/d"),
    ],
)
def test_a_driver_suffix_is_dropped_and_nothing_else(given: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAMTURN_POSTGRES_URL", given)
    assert _value("POSTGRES_URL") == used


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("AMQP_URL", value)
            for value in ("localhost", "http://hunter2hunter2@h/", "amqp://", "amqp://hunter 2", "amqp://hunter2,h/")
        ],
        *[
            ("POSTGRES_URL", value)
            for value in ("hunter2", "mysql://u:hunter2@h/d", "postgresql:/hunter2", "sqlite://")
        ],
        *[("PREFIX", value) for value in ("hunter 2", "hunter/2", "hunter2\n", "h" * 101, "hünter")],
        *[("DB_SCHEMA", value) for value in ("2hunter", 'hunter"2', "hunter-2", "h" * 64, "hunter.2")],
        *[("PARTITIONS", value) for value in ("0", "257", "-16", "16.5", "hunter2", "1e2")],
        *[("PREFETCH", value) for value in ("0", "-1", "65536", "hunter2")],
        *[("MAX_CONCURRENT_TURNS", value) for value in ("0", "-1", "hunter2", "1.5")],
        *[("TURN_TIMEOUT", value) for value in ("0", "-1", "inf", "nan", "hunter2", "86401")],
        *[("DRAIN_TIMEOUT", value) for value in ("-1", "inf", "nan", "hunter2")],
        *[("MAX_REQUEST_BYTES", value) for value in ("0", "-1", "1MB", "hunter2")],
        *[("HTTP_PORT", value) for value in ("-1", "65536", "hunter2", "80.5")],
        *[("LOG_LEVEL", value) for value in ("hunter2", "trace", "20", "info,debug")],
        *[("LOG_CONTENT", value) for value in ("hunter2", "2", "maybe")],
        *[("REPLY_TO_PATTERN", value) for value in ("hunter2(", "[hunter2", "*hunter2")],
    ],
)
def test_a_wrong_value_ends_the_start_with_a_line_that_names_the_variable_and_not_the_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not re.search(r"h.?nter.?2", _refused(monkeypatch, name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "amqp://user:hunter2@rabbit:port/"),
        ("AMQP_URL", "amqp://user:hunter2@rabbit:5671/?cafile=/etc/ca.pem"),
        ("AMQP_URL", "amqp://user:hunter2@rabbit:99999/"),
        ("AMQP_URL", "amqp://user:hunter2@[::1/"),
        ("POSTGRES_URL", "postgresql://user:hunter2@db:port/x"),
        ("POSTGRES_URL", "postgresql://user:hunter2@[::1/x"),
    ],
)
async def test_a_url_that_has_no_address_ends_the_start_too(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TEAMTURN_{name}", value)
    with pytest.raises(StartupError) as refused:
        settings = Settings.read()
        if name == "AMQP_URL":
            await broker.connect(settings.amqp_url, name="test")
        else:
            await database.connect(settings.postgres_url, "ai", application="test")
    assert f"TEAMTURN_{name}" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_urls_are_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAMTURN_AMQP_URL", "amqp://u:hunter2@h/")
    monkeypatch.setenv("TEAMTURN_POSTGRES_URL", "postgresql://u:hunter2@h/d")
    settings = Settings.read()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump())


def test_limits_are_times() -> None:
    assert Settings(turn_timeout=1.5).turn_limit == timedelta(seconds=1.5)


def test_settings_do_not_change_once_they_are_read() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.partitions = 1  # type: ignore[misc]


def test_other_variables_are_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTITIONS", "5")
    monkeypatch.setenv("TEAMTURN_SOMETHING_ELSE", "5")
    assert _value("PARTITIONS") == 16


def test_a_variable_that_looks_like_a_setting_and_is_none_can_be_told() -> None:
    environment = dict.fromkeys(["TEAMTURN_PREFFIX", "TEAMTURN_PREFIX", "PREFFIX", "TEAMTURN_HTTP_PORT"], "8080")
    assert Settings.without_effect(environment) == ["TEAMTURN_PREFFIX"]
