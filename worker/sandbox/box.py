"""The sandbox's context manager."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.sandbox.site import Site
from worker.sandbox.ways import OWN, WAYS, have_postgres, have_rabbitmq


def state_file() -> Path:
    """Return where a kept sandbox of this user is written down."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "teamturn" / "sandbox.json"


def _silent(_line: str) -> None:
    """Report nothing."""


class Sandbox:
    """A RabbitMQ and a Postgres, from entering to leaving the context; SandboxError if one can't be had.

    `report` gets a readable line for each slow step, and for the way in which each server was had. On
    leaving, all processes and files are gone; they go as well when this process dies, however it does. With
    `keep`, leaving without an error lets all run on until `stop_kept(state_file())`, and `about` is written
    down there. With `own`, both are processes of this sandbox, to be crashed and started again at will; URLs
    and Docker are passed over.
    """

    def __init__(self, report: Callable[[str], None] = _silent, *, keep: bool = False, own: bool = False) -> None:
        self._report = report
        self._ways = OWN if own else WAYS
        self.keep = keep
        self.about: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.site = Site(self._report)
        try:
            self.rabbitmq = have_rabbitmq(self.site, self._ways)
            self.postgres = have_postgres(self.site, self._ways)
        except BaseException:  # Ctrl-C too
            self.site.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.keep and kind is None:
            urls = {"amqp_url": self.amqp_url, "postgres_url": self.postgres_url}
            if self.site.reaper.keep(state_file(), urls | self.about):
                return
            self._report("Another sandbox is being kept, so this one ends.")
        self.site.close()

    @property
    def amqp_url(self) -> str:
        """RabbitMQ's URL."""
        return self.rabbitmq.url

    @property
    def postgres_url(self) -> str:
        """Postgres's URL: of a private server, its superuser and its database `postgres`."""
        return self.postgres.url
