"""`teamturn asyncapi`."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError
from yarl import URL

from schemas.asyncapi import Broker, asyncapi
from worker.broker import host_and_port
from worker.cli.yaml import yaml_of
from worker.errors import StartupError
from worker.settings import Settings


def print_asyncapi(
    *,
    prefix: Annotated[str | None, typer.Option(help="The prefix; TEAMTURN_PREFIX by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; else it is YAML.")] = False,
) -> None:
    """Print the AsyncAPI 3 document.

    It describes exchanges, queues, routing keys and messages, for people and for generators of clients. Nothing is
    connected to; of TEAMTURN_AMQP_URL it has host and virtual host.
    """
    settings = Settings.read()
    if prefix is not None:
        try:
            settings = Settings(prefix=prefix)
        except ValidationError:
            raise StartupError("--prefix is wrong: it is 1 to 100 letters, digits and any of _ . : -") from None
    url = URL(settings.amqp_url.get_secret_value())
    broker = Broker(
        host=host_and_port(settings.amqp_url),
        vhost=url.path.removeprefix("/") or "/",
        secure=url.scheme == "amqps",
    )
    document = asyncapi(settings.prefix, version=version("teamturn"), broker=broker)
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else yaml_of(document), nl=as_json)
