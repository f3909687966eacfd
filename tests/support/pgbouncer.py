"""A real connection pooler between a test and Postgres, where PgBouncer is on the machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from worker.sandbox.server import takes_connections
from worker.sandbox.site import Site, free_port

_PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin"


@contextmanager
def pgbouncer(postgres_url: str, *, mode: str, ignored: str) -> Iterator[str]:
    """The URL of a database by way of PgBouncer.

    `mode` is transaction or session; `ignored` are the start-up parameters that it drops instead of refusing them.
    """
    program = shutil.which("pgbouncer", path=_PROGRAMS)
    if program is None:
        pytest.skip("PgBouncer is not on this machine: apt-get install pgbouncer")
    parts = urlsplit(postgres_url)
    database = parts.path.removeprefix("/")
    site = Site(report=print)
    try:
        port = free_port()
        config = site.directory / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"{database} = host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 5\nignore_startup_parameters = {ignored}\n"
        )
        config.chmod(0o644)
        # It refuses to run as root, as Postgres does.
        nobody = pwd.getpwnam("nobody")
        user = (nobody.pw_uid, nobody.pw_gid) if os.geteuid() == 0 else None
        process = site.start("pgbouncer", [program, config], user=user, stop_signal=signal.SIGINT)
        process.wait_until(lambda: takes_connections("127.0.0.1", port), 20)
        yield f"postgresql://{parts.username}@127.0.0.1:{port}/{database}"
    finally:
        site.close()
