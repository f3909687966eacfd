"""TLS of both connections: real servers, and certificates made here."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr
from yarl import URL

from schemas.requests import RunRequest
from tests.acceptance.stage import QUICKER, worker_on
from tests.support.own_servers import (
    ask_for_certificates,
    own_postgres,
    own_rabbitmq,
    rabbitmq_conf_of_tls,
    turn_tls_on,
)
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker import broker
from worker.client import RunClient
from worker.errors import BrokerUnavailable, StartupError
from worker.sandbox import Sandbox
from worker.sandbox.server import Server
from worker.sandbox.site import free_port
from worker.sessions import database
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True)
class Paper:
    """Files of an authority, of somebody else's, and of a client that the first one vouches for."""

    folder: Path
    authority: trustme.CA

    @property
    def trusted(self) -> str:
        return str(self.folder / "authority.pem")

    @property
    def foreign(self) -> str:
        return str(self.folder / "foreign.pem")

    @property
    def client(self) -> dict[str, str]:
        return {"certfile": str(self.folder / "client.pem"), "keyfile": str(self.folder / "client.key")}


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Paper:
    folder = tmp_path_factory.mktemp("paper")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    trustme.CA().cert_pem.write_to_path(folder / "foreign.pem")
    write(authority.issue_cert("ada@example.org", common_name="ada"), folder, "client")
    write(authority.issue_cert("localhost"), folder, "server")
    return Paper(folder, authority)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def collected() -> AsyncIterator[None]:
    """Nothing of a connection that came to nothing is left for between the tests, where the module's loop rests."""
    yield
    gc.collect()


def write(certificate: trustme.LeafCert, folder: Path, name: str) -> None:
    certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    certificate.private_key_pem.write_to_path(folder / f"{name}.key")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def amqps(paper: Paper) -> AsyncIterator[URL]:
    """A RabbitMQ with TLS, whose certificate names localhost, and which wants to see a client's."""
    port = free_port()
    files = [paper.folder / name for name in ("authority.pem", "server.pem", "server.key")]
    async with own_rabbitmq(rabbitmq_conf_of_tls(port, *files)) as node:
        yield URL(node.url).with_scheme("amqps").with_host("localhost").with_port(port)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres(paper: Paper) -> AsyncIterator[Server]:
    """A Postgres with TLS, whose certificate names localhost; the role ada shows hers."""
    async with own_postgres() as server:
        await certify(server, paper, paper.authority.issue_cert("localhost"))
        await ask_for_certificates(server, "ada")
        admin = await asyncpg.connect(server.url, ssl="disable")
        await admin.execute("create role ada login")
        await admin.close()
        yield server


async def certify(server: Server, paper: Paper, certificate: trustme.LeafCert) -> None:
    pem = certificate.cert_chain_pems[0].bytes()
    await turn_tls_on(server, paper.authority.cert_pem.bytes(), pem, certificate.private_key_pem.bytes())


def secret(url: URL) -> SecretStr:
    return SecretStr(str(url))


def postgres_at(server: Server, *, host: str = "localhost", **parameters: str) -> URL:
    return URL(server.url).with_host(host).with_query(parameters)


async def postgres_says(url: URL) -> str:
    """What an operator is told who can't connect."""
    with pytest.raises(StartupError) as told:
        await database.connect(secret(url), "ai", application="test")
    return only_line(str(told.value), url)


async def rabbitmq_says(url: URL) -> str:
    with pytest.raises(StartupError) as told:
        await broker.connect(secret(url), name="test")
    return only_line(str(told.value), url)


def only_line(text: str, url: URL) -> str:
    assert len(text.splitlines()) == 1
    assert url.password is None or url.password not in text
    return text


# --- RabbitMQ ---


async def test_rabbitmq_is_reached_by_a_certificate_of_its_name_and_a_trusted_authority(
    amqps: URL, paper: Paper
) -> None:
    connection = await broker.connect(secret(amqps.with_query(cafile=paper.trusted, **paper.client)), name="test")
    channel = await connection.amqp.channel()
    assert not channel.is_closed
    await connection.close()


async def test_without_a_cafile_the_system_s_authorities_are_asked(amqps: URL, paper: Paper) -> None:
    assert "not trusted" in await rabbitmq_says(amqps.with_query(paper.client))


async def test_another_authority_s_certificate_is_not_trusted(amqps: URL, paper: Paper) -> None:
    assert "not trusted" in await rabbitmq_says(amqps.with_query(cafile=paper.foreign, **paper.client))


async def test_a_certificate_of_another_name_is_not_trusted(amqps: URL, paper: Paper) -> None:
    url = amqps.with_host("127.0.0.1").with_query(cafile=paper.trusted, **paper.client)
    line = await rabbitmq_says(url)
    assert "not trusted" in line
    assert "'127.0.0.1'" in line


async def test_an_expired_certificate_is_not_trusted(paper: Paper) -> None:
    expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    paper.authority.issue_cert("localhost", not_after=LONG_AGO).configure_cert(expired)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=expired)
    port = server.sockets[0].getsockname()[1]
    async with server:
        line = await rabbitmq_says(URL(f"amqps://u:s3cret-hunter2@localhost:{port}/").with_query(cafile=paper.trusted))
    assert "expired" in line


async def test_a_server_that_wants_to_see_a_certificate_and_is_shown_none_is_a_line(amqps: URL, paper: Paper) -> None:
    url = amqps.with_query(cafile=paper.trusted)
    with pytest.raises((StartupError, BrokerUnavailable)) as told:  # RabbitMQ may be gone before it is heard
        await broker.connect(secret(url), name="test")
    assert "certificate" in only_line(str(told.value), url)


async def test_a_port_without_tls_is_a_line(sandbox: Sandbox) -> None:
    assert "does not speak TLS" in await rabbitmq_says(URL(sandbox.amqp_url).with_scheme("amqps"))


@pytest.mark.parametrize("name", ["cafile", "certfile", "keyfile"])
async def test_a_file_that_is_missing_is_named(amqps: URL, paper: Paper, name: str) -> None:
    line = await rabbitmq_says(amqps.with_query({"cafile": paper.trusted, **paper.client, name: "/missing.pem"}))
    assert f"{name}, '/missing.pem'" in line


async def test_a_file_without_a_certificate_is_a_line(amqps: URL, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert "holds no certificate" in await rabbitmq_says(amqps.with_query(cafile=str(empty)))


# --- Postgres ---


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
async def test_each_sslmode_of_libpq_means_what_it_says(postgres: Server, paper: Paper, mode: str) -> None:
    url = postgres_at(postgres, sslmode=mode, **({"sslrootcert": paper.trusted} if "verify" in mode else {}))
    connection = await database.connect(secret(url), "ai", application="test")
    encrypted = await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    await connection.close()
    assert encrypted == (mode not in {"disable", "allow"})


@pytest.mark.parametrize(
    ("host", "parameters", "says"),
    [
        ("localhost", {"sslmode": "verify-full", "sslrootcert": "foreign"}, "not trusted"),
        ("localhost", {"sslmode": "verify-ca", "sslrootcert": "foreign"}, "not trusted"),
        ("127.0.0.1", {"sslmode": "verify-full", "sslrootcert": "trusted"}, "'127.0.0.1'"),
        ("localhost", {"sslmode": "verify-full", "sslrootcert": "/missing.pem"}, "sslrootcert, '/missing.pem'"),
        ("localhost", {"sslmode": "verify-fully"}, "sslmode"),
    ],
    ids=["another authority", "another authority, verify-ca", "another name", "missing file", "no such mode"],
)
async def test_what_is_wrong_with_postgres_s_tls_is_a_line(
    postgres: Server, paper: Paper, host: str, parameters: dict[str, str], says: str
) -> None:
    files = {"trusted": paper.trusted, "foreign": paper.foreign}
    given = {name: files.get(value, value) for name, value in parameters.items()}
    assert says in await postgres_says(postgres_at(postgres, host=host, **given))


async def test_verify_ca_takes_another_name(postgres: Server, paper: Paper) -> None:
    url = postgres_at(postgres, host="127.0.0.1", sslmode="verify-ca", sslrootcert=paper.trusted)
    await (await database.connect(secret(url), "ai", application="test")).close()


async def test_a_role_shows_its_certificate_to_postgres(postgres: Server, paper: Paper) -> None:
    shown = {"sslcert": paper.client["certfile"], "sslkey": paper.client["keyfile"]}
    url = postgres_at(postgres, sslmode="verify-full", sslrootcert=paper.trusted, **shown)
    ada = url.with_user("ada").with_password(None)
    connection = await database.connect(secret(ada), "ai", application="test")
    assert await connection.fetchval("select current_user") == "ada"
    await connection.close()


async def test_a_postgres_certificate_that_expires_is_a_line_from_then_on(postgres: Server, paper: Paper) -> None:
    url = postgres_at(postgres, sslmode="verify-full", sslrootcert=paper.trusted)
    await certify(postgres, paper, paper.authority.issue_cert("localhost", not_after=LONG_AGO))
    try:
        await eventually(lambda: is_expired_by_now(url))
    finally:
        await certify(postgres, paper, paper.authority.issue_cert("localhost"))


async def is_expired_by_now(url: URL) -> bool:
    """Whether Postgres is refused for its certificate: it reads it again a moment after it was told to."""
    try:
        connection = await database.connect(secret(url), "ai", application="test")
    except StartupError as error:
        return "expired" in only_line(str(error), url)
    await connection.close()
    return False


async def test_a_postgres_without_tls_is_a_line_where_it_is_asked_for(postgres_url: str) -> None:
    assert "it has no TLS" in await postgres_says(URL(postgres_url).with_query(sslmode="require"))


# --- all that connects ---


async def test_worker_ask_client_and_doctor_go_by_the_same_urls(
    amqps: URL, postgres: Server, paper: Paper, tmp_path: Path
) -> None:
    postgres_url = postgres_at(postgres, sslmode="verify-full", sslrootcert=paper.trusted)
    amqp_url = amqps.with_query(cafile=paper.trusted, **paper.client)
    settings = Settings(amqp_url=secret(amqp_url), postgres_url=secret(postgres_url), partitions=2)
    surroundings = environment_of(settings, **QUICKER, XDG_STATE_HOME=str(tmp_path))
    assert (await run_command("migrate", environment=surroundings))[0] == 0
    async with worker_on(settings) as worker:
        await worker.consuming()
        asked = await run_command("ask", "hello", "--team", "echo", environment=surroundings)
        async with RunClient(str(amqp_url)) as client:
            replied = await client.run(RunRequest(run_id="of-the-client", team_id="echo", input="hello"))
        _, out, _ = await run_command("doctor", "--json", environment=surroundings)
    assert (asked[0], asked[1].strip(), replied.content) == (0, "hello", "hello")
    checks = {check["name"]: check for check in map(json.loads, out.splitlines())}
    for name in ("postgres tls", "rabbitmq tls"):
        assert checks[name]["verdict"] == "ok"
        assert "encrypted (TLS" in checks[name]["says"]
    assert quote(URL(amqp_url).password or "") not in out
