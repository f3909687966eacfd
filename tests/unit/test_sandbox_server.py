"""Servers that are given by URL, and how an answer is told from none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker.sandbox.errors import SandboxError
from worker.sandbox.server import Server, endpoint, given_server, postgres_answers, rabbitmq_answers


@contextmanager
def _listener(reply: bytes) -> Iterator[int]:
    """A server on a free port that answers one client."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://guest:guest@broker/", ("broker", 5672)),
        ("amqps://broker:5671/vhost", ("broker", 5671)),
        ("amqp://[::1]:5673/", ("::1", 5673)),
        ("amqp:///", ("localhost", 5672)),
    ],
)
def test_a_url_names_a_host_and_a_port(url: str, expected: tuple[str, int]) -> None:
    assert endpoint(url, 5672) == expected


@pytest.mark.parametrize("url", ["amqp://host:port/", "amqp://[::1/"])
def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    with pytest.raises(SandboxError, match="is not a URL"):
        endpoint(url, 5672)


def test_a_given_server_keeps_its_url_but_for_a_driver_suffix() -> None:
    with _listener(b"") as port:
        url = f"postgresql+psycopg://u:p@127.0.0.1:{port}/db"
        server = given_server("Postgres", "TEAMTURN_POSTGRES_URL", url, 5432)
    assert server.url == f"postgresql://u:p@127.0.0.1:{port}/db"
    assert server.way == "given by TEAMTURN_POSTGRES_URL"


def test_a_given_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(SandboxError) as caught:
        given_server("RabbitMQ", "TEAMTURN_AMQP_URL", "amqp://u:secret@127.0.0.1:1/", 5672)
    assert "TEAMTURN_AMQP_URL names RabbitMQ at 127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("verb", ["stop", "kill", "start", "restart"])
def test_a_server_that_is_not_ours_is_left_alone(verb: str) -> None:
    server = Server("RabbitMQ", "amqp://broker/", "given by TEAMTURN_AMQP_URL")
    with pytest.raises(SandboxError, match="was not started by the sandbox"):
        getattr(server, verb)()


@pytest.mark.parametrize(("reply", "answers"), [(b"\x01\x00\x00\x00\x00", True), (b"AMQP\x01", False), (b"", False)])
def test_rabbitmq_answers_when_it_begins_the_protocol(reply: bytes, answers: bool) -> None:  # noqa: FBT001
    with _listener(reply) as port:
        assert rabbitmq_answers("127.0.0.1", port) is answers


@pytest.mark.parametrize(("reply", "answers"), [(b"R\x00\x00\x00\x17", True), (b"E\x00\x00\x00\x53", False)])
def test_postgres_answers_when_it_asks_for_a_password(reply: bytes, answers: bool) -> None:  # noqa: FBT001
    with _listener(reply) as port:
        assert postgres_answers("127.0.0.1", port) is answers


def test_nothing_answers_on_a_closed_port() -> None:
    assert not rabbitmq_answers("127.0.0.1", 1)
    assert not postgres_answers("127.0.0.1", 1)
