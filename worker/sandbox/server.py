"""What a server of the sandbox is, however it was had."""

import re
import socket
from urllib.parse import urlsplit

from worker.sandbox.errors import SandboxError


class Server:
    """A RabbitMQ or a Postgres: its URL, and the way by which it was had.

    One that was given by its URL is somebody else's: stop, kill, start and restart raise SandboxError.
    """

    def __init__(self, name: str, url: str, way: str) -> None:
        self.name = name
        self.url = url
        self.way = way

    def stop(self) -> None:
        """Stop it as an operator would; its data stay."""
        self._refuse("stopped")

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); its data stay."""
        self._refuse("killed")

    def start(self) -> None:
        """Start it again, on the same port and data, and wait until it answers."""
        self._refuse("started")

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def _refuse(self, verb: str) -> None:
        raise SandboxError(f"{self.name} was not started by the sandbox ({self.way}), so it can't be {verb} by it.")


def endpoint(url: str, default_port: int) -> tuple[str, int]:
    """Return the host and the port that a URL names."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise SandboxError(f"{url!r} is not a URL: {exc}.") from exc
    return host or "localhost", port or default_port


def rabbitmq_answers(host: str, port: int) -> bool:
    """Tell whether a RabbitMQ there takes connections; it opens its listeners last of all."""
    # The protocol header is answered with connection.start: a method frame (1) on channel 0.
    return _answer(host, port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")


def postgres_answers(host: str, port: int) -> bool:
    """Tell whether a Postgres there takes connections; one that is still starting says E for error."""
    words = b"user\x00postgres\x00database\x00postgres\x00\x00"
    startup = (8 + len(words)).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + words
    return _answer(host, port, startup).startswith(b"R")  # a request to authenticate


def _answer(host: str, port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(question)
            return connection.recv(16)
    except OSError:
        return b""


def takes_connections(host: str, port: int) -> bool:
    """Tell whether anything listens there, of whatever protocol: a given URL may ask for TLS."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def given_server(name: str, variable: str, url: str, default_port: int) -> Server:
    """Return the server that the environment names; SandboxError if nothing listens there.

    A driver suffix such as `postgresql+psycopg` is dropped, as the settings do.
    """
    host, port = endpoint(url, default_port)
    if not takes_connections(host, port):
        raise SandboxError(
            f"{variable} names {name} at {host}:{port}, but nothing answers there. "
            f"Correct it, or unset it and have a private one started."
        )
    return Server(name, re.sub(r"^(\w+)\+\w+://", r"\1://", url), f"given by {variable}")
