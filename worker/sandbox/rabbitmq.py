"""A private RabbitMQ node from the machine's binaries.

All of it is its own: ports, name, cookie, data, logs, plugins (none), and also the Erlang port mapper (epmd),
of which there would otherwise be one for the whole machine that stays when the node has ended.
"""

import os
import re
import secrets
import signal

from typing_extensions import override

from worker.sandbox.binaries import RabbitmqBinaries
from worker.sandbox.errors import StartError
from worker.sandbox.server import Server, rabbitmq_answers, takes_connections
from worker.sandbox.site import OwnedProcess, Site, free_port

_START_SECONDS = 90
_ATTEMPTS = 5
_PORT_LOST = re.compile(r"eaddrinuse|already in use|port in use", re.IGNORECASE)


class RabbitmqNode(Server):
    """A node on 127.0.0.1 with a user of its own; it is answering when the constructor returns."""

    def __init__(self, site: Site, binaries: RabbitmqBinaries, way: str) -> None:
        self._site = site
        self._binaries = binaries
        self._password = secrets.token_hex(16)
        self._cookie = secrets.token_hex(16)
        for attempt in range(1, _ATTEMPTS + 1):
            self._port, distribution_port, epmd_port = free_port(), free_port(), free_port()
            self._home = site.directory / f"rabbitmq-{attempt}"
            self._env = self._prepare(distribution_port, epmd_port)
            try:
                self._epmd = self._start_epmd(epmd_port)
                self._process = self._start_node()
                break
            except StartError as failure:
                if attempt == _ATTEMPTS or not _PORT_LOST.search(failure.log):
                    raise
        url = f"amqp://teamturn:{self._password}@127.0.0.1:{self._port}/"
        super().__init__("RabbitMQ", url, way)

    @override
    def stop(self) -> None:
        # The script passes SIGTERM on, and waits for the node to end in good order.
        self._site.end(self._process, signal.SIGTERM)

    @override
    def kill(self) -> None:
        """End it as a crash would (SIGKILL).

        RabbitMQ 3.10 writes a new quorum queue into its directory of queues up to half a second after its
        declaration was confirmed. One that is younger at the crash is lost: it exists, but never answers again.
        """
        self._site.end(self._process, signal.SIGKILL)

    @override
    def start(self) -> None:
        self._process = self._start_node()

    def _prepare(self, distribution_port: int, epmd_port: int) -> dict[str, str]:
        """Write the node's files, and return the environment that leads it to them."""
        home = self._home
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (home / "plugins").write_text("[].\n")
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            "default_user = teamturn\n"
            f"default_pass = {self._password}\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        theirs = ("RABBITMQ_", "ERL_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        return env | {
            "HOME": str(home),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_NODENAME": f"{self._site.name}@localhost",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            # Without this, the port for other nodes listens on every interface.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _start_epmd(self, port: int) -> OwnedProcess:
        """Start the port mapper in the foreground, to end with the site; Erlang would leave a daemon."""
        command = [str(self._binaries.epmd), "-port", str(port), "-address", "127.0.0.1"]
        process = self._site.start("epmd", command, env=self._env)
        process.wait_until(lambda: takes_connections("127.0.0.1", port), 20)
        return process

    def _start_node(self) -> OwnedProcess:
        process = self._site.start("rabbitmq", [self._binaries.server], env=self._env, cwd=self._home)
        try:
            process.wait_until(lambda: rabbitmq_answers("127.0.0.1", self._port), _START_SECONDS)
        except StartError:
            self._site.end(process, signal.SIGKILL)
            raise
        return process
