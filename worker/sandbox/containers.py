"""Servers in Docker, through testcontainers.

Only the library's plain container is used. Its own reaper would need one more image; the sandbox's also ends
containers when the sandbox was killed, and can keep them running as well.
"""

import gc
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Final

from typing_extensions import override

from worker.sandbox.errors import StartError, WayClosedError
from worker.sandbox.server import Server, postgres_answers, rabbitmq_answers
from worker.sandbox.site import Site, free_port

_ENGINE_SECONDS = 3
_START_SECONDS = 90
_LAST_LINES = 15


@dataclass(frozen=True)
class Image:
    """What to run, and how to reach what runs in it."""

    server: str
    name: str
    port: int
    settings: dict[str, str]  # {password} stands for a random one
    url: str
    answers: Callable[[str, int], bool]


RABBITMQ: Final = Image(
    "RabbitMQ",
    "rabbitmq:4",
    5672,
    {"RABBITMQ_DEFAULT_USER": "teamturn", "RABBITMQ_DEFAULT_PASS": "{password}"},
    "amqp://teamturn:{password}@127.0.0.1:{port}/",
    rabbitmq_answers,
)
POSTGRES: Final = Image(
    "Postgres",
    "postgres:17",
    5432,
    {"POSTGRES_PASSWORD": "{password}"},
    "postgresql://postgres:{password}@127.0.0.1:{port}/postgres",
    postgres_answers,
)


def check_engine() -> None:
    """Raise WayClosedError unless testcontainers is installed and a local engine answers within seconds."""
    if find_spec("testcontainers") is None:
        raise WayClosedError("the package testcontainers is not installed")
    host = _engine_host()
    if host is None:
        raise WayClosedError("no Docker engine answers")
    if host not in {"localhost", "127.0.0.1"}:
        raise WayClosedError(f"the Docker engine is on another machine ({host})")


@cache  # for the second server; an engine neither comes nor goes between the two
def _engine_host() -> str | None:
    """Return where the engine's containers can be reached; None if no engine answers."""
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - an optional package

    with warnings.catch_warnings():
        # The docker package leaves the socket of a failed connection to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = DockerClient(timeout=_ENGINE_SECONDS)
            client.client.ping()
            host = client.host()
            client.client.close()
        except Exception:  # noqa: BLE001 - it raises what it likes: there is no engine for us
            host = None
        gc.collect()
    return host


class ServerContainer(Server):
    """A container on a fixed port of 127.0.0.1, so that it can be started again; it answers when made."""

    def __init__(self, site: Site, image: Image) -> None:
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - an optional package
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        testcontainers_config.ryuk_disabled = True
        password = secrets.token_hex(16)
        self._image, self._port = image, free_port()
        site.report(f"Starting {image.name} in Docker; the first time, its image is fetched …")
        container = DockerContainer(image.name)
        for name, value in image.settings.items():
            container.with_env(name, value.format(password=password))
        # Docker's own form, with an address; the library's type knows only the port.
        container.ports[f"{image.port}/tcp"] = ("127.0.0.1", self._port)  # type: ignore[assignment]
        try:
            container.start()
        except Exception as exc:  # likewise: no network for the image, no room, no right
            container.stop()
            raise WayClosedError(f"Docker could not start {image.name}: {exc}") from exc
        self._container = container.get_wrapped_container()
        site.reaper.watch_container(str(self._container.id))
        self._wait()
        url = image.url.format(password=password, port=self._port)
        super().__init__(image.server, url, f"Docker, {image.name}")

    @override
    def stop(self) -> None:
        self._container.stop()

    @override
    def kill(self) -> None:
        self._container.kill()

    @override
    def start(self) -> None:
        self._container.start()
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._image.answers("127.0.0.1", self._port):
            if time.monotonic() > deadline:
                log = self._container.logs(tail=_LAST_LINES).decode(errors="replace")
                raise StartError(f"{self._image.name} did not answer within {_START_SECONDS} s:", log)
            time.sleep(0.1)
