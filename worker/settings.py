"""Settings: environment variables with the prefix TEAMTURN_, read once, by whoever starts something."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.certificates import OF_AMQP
from worker.errors import StartupError

ENV_PREFIX: Final = "TEAMTURN_"
SUPERVISED: Final = "TEAMTURN_SUPERVISED"
"""Set for the workers of a supervisor, to a file descriptor by which they say that they have started. Their standard
input is the supervisor's sign of life."""
PROCESS_NUMBER: Final = "TEAMTURN_PROCESS_NUMBER"
"""Set for them as well: which of its workers it is, from 1."""
SUPERVISORS_OWN: Final = frozenset({SUPERVISED, PROCESS_NUMBER})


def _amqp_url(value: SecretStr) -> SecretStr:
    if not re.match(r"amqps?://[^\s]+$", value.get_secret_value()):
        raise ValueError("it must look like amqp://user:password@host:5672/ (amqps:// for TLS)")
    _check_parts(value.get_secret_value())
    if len(hosts_of(value.get_secret_value())) > 1:
        raise ValueError("it must name one server")
    parts = urlsplit(value.get_secret_value())
    if parts.scheme == "amqp" and OF_AMQP & dict(parse_qsl(parts.query)).keys():
        raise ValueError("it names certificates, and amqp:// is not encrypted: amqps:// is")
    return value


def _check_parts(url: str) -> None:
    """Raise ValueError, without any part of the URL, where a password's characters have split it wrongly."""
    try:
        parts = urlsplit(url)
        wrong = any(port == 0 for _, port in hosts_of(url)) or bool(parts.fragment)
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError(
            "its port is no number from 1 to 65535, or its user or password has a character that must be "
            "percent-encoded (/ is %2F, # is %23, ? is %3F, @ is %40)"
        )


def hosts_of(url: str) -> list[tuple[str | None, int | None]]:
    """Return the hosts of a URL and their ports: of Postgres it can name several, the stand-bys behind the primary.

    Raises ValueError for a port that is none.
    """
    servers = (urlsplit(f"//{server}") for server in urlsplit(url).netloc.rpartition("@")[2].split(","))
    return [(server.hostname, server.port) for server in servers]


def _postgres_url(value: Any) -> Any:  # noqa: ANN401 - whatever the environment holds
    if not isinstance(value, str):
        return value
    # A driver suffix is for other libraries, such as SQLAlchemy: postgresql+psycopg://…
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", value)
    if not re.match(r"postgres(?:ql)?://", plain):
        raise ValueError("it must look like postgresql://user:password@host:5432/database")
    _check_parts(plain)
    return plain


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    return value


def _lower(value: Any) -> Any:  # noqa: ANN401 - whatever the environment holds
    return value.lower() if isinstance(value, str) else value


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """What an operator can set; see the table in README.md for what each means."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_url)] = SecretStr("amqp://guest:guest@localhost:5672/")
    postgres_url: Annotated[SecretStr, BeforeValidator(_postgres_url)] = SecretStr(
        "postgresql://postgres@localhost:5432/postgres"
    )
    teams: str = ""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")] = "teamturn"
    db_schema: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] = "ai"
    partitions: Annotated[int, Field(ge=1, le=256)] = 16
    prefetch: Annotated[int, Field(ge=1, le=65_535)] = 128
    max_concurrent_turns: PositiveInt = 256
    turn_timeout: Seconds = 600
    max_attempts: PositiveInt = 3
    drain_timeout: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 30
    max_request_bytes: PositiveInt = 1_048_576
    reply_to_pattern: Annotated[str, AfterValidator(_pattern)] = ""
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = "info"
    log_content: bool = False
    trace_content: bool = False

    @property
    def turn_limit(self) -> timedelta:
        """The hard limit on one attempt of a turn."""
        return timedelta(seconds=self.turn_timeout)

    @property
    def logging_level(self) -> int:
        """The level from which on events are logged, as the standard library counts."""
        return logging.getLevelNamesMapping()[self.log_level.upper()]

    @classmethod
    def read(cls) -> Self:
        """Read the environment. A wrong variable is a StartupError that names it, without its value."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = f"{ENV_PREFIX}{'_'.join(str(part) for part in first['loc']).upper()}"
            reason = first["msg"].removeprefix("Value error, ")
            raise StartupError(f"{name} is wrong: {reason[:1].lower()}{reason[1:]}") from None

    @classmethod
    def without_effect(cls, environment: Mapping[str, str]) -> list[str]:
        """Return the variables that look like settings and are none: a typing mistake, or another version's."""
        known = {f"{ENV_PREFIX}{name.upper()}" for name in cls.model_fields} | SUPERVISORS_OWN
        return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name.upper() not in known)
