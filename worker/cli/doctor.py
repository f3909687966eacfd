"""`teamturn doctor`."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from schemas.checks import Check, Verdict
from worker.cli.terminal import one_line
from worker.operations.examination import Examination
from worker.operations.logging import Redaction, secrets_in
from worker.settings import Settings

_STYLES: Final = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red", Verdict.SKIPPED: "dim"}
_VERDICT_COLUMNS: Final = 9
_NAME_COLUMNS: Final = 17


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a check a line.")] = False,
) -> None:
    """Check the set-up, and say what to do.

    RabbitMQ, Postgres, and what a worker with these settings needs of them; nothing is changed. A line a check: ok,
    warning or failure, what was found and what to do; skipped is what needs something that failed. A warning is to be
    dealt with, a failure at once.

    \b
      $ teamturn doctor
      ok       postgres         PostgreSQL 15.6 at db:5432 answers
      failure  connections      a connection is served by changing
                                processes: a pooler shares them out by
                                transactions → give the direct address …
      skipped  schema           it needs connections
      ok       rabbitmq         RabbitMQ 3.10.8 at mq:5672 answers
      warning  dead letters     3 in teamturn.dead → look at them: teamturn
                                dead list

    Exit code 1 if a check failed, 2 if a setting is wrong.
    """  # noqa: D301 - \b has typer keep the lines below it
    settings = Settings.read()
    redacted = Redaction(secrets_in(os.environ))

    async def examine() -> bool:
        failed = False
        async for check in Examination(settings).checks():
            failed |= check.verdict is Verdict.FAILURE
            _print(_without_secrets(check, redacted), as_json=as_json)
        return failed

    if asyncio.run(examine()):
        raise typer.Exit(1)


def _without_secrets(check: Check, redacted: Redaction) -> Check:
    advice = None if check.advice is None else redacted(check.advice)
    return check.model_copy(update={"says": redacted(one_line(check.says)), "advice": advice})


def _print(check: Check, *, as_json: bool) -> None:
    if as_json:
        typer.echo(check.model_dump_json())
        return
    line = Text(check.verdict.value.ljust(_VERDICT_COLUMNS), style=_STYLES[check.verdict])
    line.append(check.name.ljust(_NAME_COLUMNS), style="default")
    line.append(check.says if check.advice is None else f"{check.says} → {check.advice}", style="default")
    Console(highlight=False).print(line, soft_wrap=True)
