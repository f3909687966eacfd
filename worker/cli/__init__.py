"""The command `teamturn`."""

from __future__ import annotations

import os
import sys

import typer

from worker.cli import ask, asyncapi, dead, doctor, fleet, schema, sessions, topology, worker
from worker.cli.chat import command as chat
from worker.errors import BrokerUnavailable, ClientError, StartupError, StoreUnavailable
from worker.operations.logging import Redaction, quiet_libraries, secrets_in

app = typer.Typer(
    name="teamturn",
    help="Workers for LLM teams: run requests from RabbitMQ, sessions in Postgres.\n\n"
    "Settings are environment variables that begin with TEAMTURN_; the README has the table.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("worker")(worker.worker)
app.command("migrate")(schema.migrate_schema)
app.add_typer(topology.app, name="topology")
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.add_typer(sessions.app, name="sessions")
app.command("fleet")(fleet.fleet)
app.add_typer(dead.app, name="dead")
app.command("doctor")(doctor.doctor)
app.command("asyncapi")(asyncapi.print_asyncapi)

_MISTAKE = 2
"""The exit code of what its user can mend."""


def main() -> None:
    """Run the command. A mistake that its user can mend is one line on standard error and exit code 2."""
    quiet_libraries()
    try:
        app()
    except (StartupError, BrokerUnavailable, StoreUnavailable, ClientError) as error:
        line = " ".join(str(error).split())
        print(f"teamturn: {Redaction(secrets_in(os.environ))(line)}", file=sys.stderr)
        sys.exit(_MISTAKE)
