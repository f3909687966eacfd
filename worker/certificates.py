"""TLS of both connections: the files that a URL names, and what is wrong where no connection came about by them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from worker.errors import StartupError

OF_AMQP: Final = frozenset({"cafile", "certfile", "keyfile"})
"""The parameters of TEAMTURN_AMQP_URL that name files; the library's are these."""
OF_POSTGRES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
"""Those of TEAMTURN_POSTGRES_URL; they are libpq's."""

_OF_THE_MOMENT: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""What a server that goes away in the middle of it causes: nothing is wrong with how it is set up."""


def rabbitmq_is_verified(url: SecretStr) -> bool:
    """Whether a connection by this URL is only to a server that shows a certificate of its name."""
    parts = urlsplit(url.get_secret_value())
    return parts.scheme == "amqps" and dict(parse_qsl(parts.query)).get("no_verify_ssl", "0") == "0"


def postgres_is_verified(url: SecretStr) -> bool:
    """Whether a connection by this URL is only to a server that shows a certificate of its name."""
    query = dict(parse_qsl(urlsplit(url.get_secret_value()).query))
    return query.get("sslmode", os.environ.get("PGSSLMODE", "")).replace("_", "-") == "verify-full"


def require_files(variable: str, url: SecretStr, parameters: Collection[str]) -> None:
    """Raise StartupError for a file that a URL names and that can't be read.

    The libraries' own errors are those of a socket: a missing file would pass for a server that is away.
    """
    query = dict(parse_qsl(urlsplit(url.get_secret_value()).query))
    for name in sorted(query.keys() & set(parameters)):
        try:
            # As the libraries open it: "~" is nobody's home to them.
            with Path(query[name]).open("rb"):
                pass
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise StartupError(f"{variable}: the file of {name}, {query[name]!r}, can't be read ({reason})") from None


def tls_mistake(error: BaseException) -> str | None:
    """Return what an operator must mend of the TLS, as a phrase; None for an error that is about something else."""
    if "rejected SSL upgrade" in str(error):
        return "it has no TLS, and sslmode asks for it"  # asyncpg's words, in a ConnectionError
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__
    if cause is None or isinstance(cause, _OF_THE_MOMENT):
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message.rstrip('.')}"
    reason = (cause.reason or type(cause).__name__).lower().replace("_", " ")
    if cause.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS on this port"
    if cause.reason in {"NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE", "PEM_LIB", "KEY_VALUES_MISMATCH"}:
        return f"the URL names a file that holds no certificate or key that fits ({reason})"
    return f"TLS can't be agreed on ({reason})"
