"""The files that URLs name for TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.certificates import OF_AMQP, OF_POSTGRES, require_files
from worker.errors import StartupError


@pytest.mark.parametrize(
    ("url", "parameters"),
    [("amqps://h/?cafile=~/ca.pem", OF_AMQP), ("postgresql://h/d?sslrootcert=~/ca.pem", OF_POSTGRES)],
)
def test_a_home_directory_s_short_name_is_none_for_the_libraries_and_said_to_be_wrong(
    url: str, parameters: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found here, it would then pass for a server that is away."""
    (tmp_path / "ca.pem").write_text("a certificate")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StartupError, match="can't be read"):
        require_files("THE_URL", SecretStr(url), parameters)
