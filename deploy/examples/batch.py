#!/usr/bin/env python3
"""Ask a team about each row of a CSV file, on a lane of its own beside the chats, and collect the answers in another.

Run it with --help.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import fcntl
import io
import json
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teamturn import BrokerUnavailable, ClientError, RunClient, RunReply, RunRequest, StartupError

HELP: Final = """\
Ask a team about each row of a CSV file, and collect the answers in another one.

First start a worker on a prefix of its own, which is a second lane of traffic:
a batch of a million rows then holds up nobody who chats on the first one.

    TEAMTURN_PREFIX=batch TEAMTURN_TEAMS=my_teams:teams teamturn worker

Then, with the same TEAMTURN_AMQP_URL:

    python batch.py cities.csv answers.csv --team capital --key id \\
        --input "What is the capital of {country}?"

{country} is a column of cities.csv. answers.csv gets the columns key, status,
answer and error, a row for each row of cities.csv, in the order of the answers.
"""

EPILOG: Final = """\
Stop it as you like, kill -9 included, and start it again in the same way: rows
that are in the answers are skipped, all others are asked again. None is done
twice: a row's run_id is made of the batch's name and the row's key, and where a
run_id is known the stored reply is sent, and the turn is not taken again.

A row that failed is in the answers with its error, and exit code 1 says so. To
ask such rows again, delete them from the answers and give another --name: under
the same one they would get the same replies.
"""

COLUMNS: Final = ("key", "status", "answer", "error")
A_DAY_SECONDS: Final = 86_400


class Mistake(Exception):
    """What whoever started the batch has to mend, in a sentence."""


@dataclass(frozen=True)
class Row:
    """What is asked, and under which key its answer is found."""

    key: str
    text: str


class Answers:
    """The file of answers: appended to, a whole record at a time, by one program at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"another batch is writing {path}") from None
        self._file.seek(0)
        found = self._file.read()
        head = _record(COLUMNS)
        if not found.startswith(head) and not head.startswith(found):
            raise Mistake(f"{path} is no file of answers: its columns are not {', '.join(COLUMNS)}")
        # A kill can leave half a record at the end: its row is asked again, and gets the stored reply.
        whole = found[: _end_of_last_record(found)]
        self._file.truncate(len(whole))
        if not whole:
            self._append(COLUMNS)
        records = list(csv.reader(io.StringIO(whole[len(head) :].decode(), newline="")))
        self.done = {record[0] for record in records}
        """The rows that have an answer."""
        self.failed = sum(record[1] != "COMPLETED" for record in records)
        """How many of these are errors."""

    def add(self, row: Row, reply: RunReply) -> None:
        """Append an answer."""
        error = "" if reply.error is None else f"{reply.error.code.value}: {reply.error.message}"
        content = "" if reply.content is None else reply.content
        # Structured output is JSON; text is itself.
        answer = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        self._append((row.key, reply.status.value, answer, error))
        self.done.add(row.key)
        self.failed += reply.status.value != "COMPLETED"

    def close(self) -> None:
        """Have the disk have all of it."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _append(self, record: tuple[str, ...]) -> None:
        self._file.write(_record(record))
        self._file.flush()


def _record(fields: tuple[str, ...]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(fields)
    return line.getvalue().encode()


def _end_of_last_record(text: bytes) -> int:
    """Return where the last whole record ends: at a line's end, and not within quotes."""
    position = end = quotes = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def rows_of(file: IO[str], key: str | None, template: str) -> Iterator[Row]:
    """Yield the rows of a CSV file. Raises Mistake."""
    seen: set[str] = set()
    for number, columns in enumerate(csv.DictReader(file), start=1):
        try:
            row = Row(str(number) if key is None else columns[key], template.format_map(columns))
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise Mistake(f"row {number}: {error!r}; the columns are {', '.join(map(str, columns))}") from None
        if row.key in seen:
            raise Mistake(f"row {number}: the key {row.key!r} is there twice")
        seen.add(row.key)
        yield row


@dataclass(frozen=True)
class Batch:
    """Whom to ask, and how."""

    name: str
    team: str
    in_flight: int

    def request(self, row: Row) -> RunRequest:
        """Return the request of a row: the same one, whenever it is asked."""
        run_id = str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_OID, self.name), row.key))
        return RunRequest(run_id=run_id, team_id=self.team, input=row.text)

    async def run(self, client: RunClient, rows: Iterator[Row], answers: Answers, progress: Progress) -> None:
        """Ask about rows, so many at a time, until there are no more."""
        task = progress.task_ids[0]

        async def ask() -> None:
            for row in rows:  # shared: each takes the next one
                reply = await client.run(self.request(row), timeout_seconds=A_DAY_SECONDS)
                if reply.status.value == "REJECTED":
                    why = "" if reply.error is None else f": {reply.error.message} ({reply.error.code.value})"
                    # It would be refused again under the same run_id.
                    raise Mistake(f"the row {row.key!r} was refused{why}; mend it, and give another --name")
                answers.add(row, reply)
                progress.update(task, advance=1, failed=answers.failed)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.in_flight):
                    group.create_task(ask())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # for which the others were cancelled


async def run(batch: Batch, rows: list[Row], answers: Answers, url: str, prefix: str) -> None:
    """Ask about all rows that have no answer, over any number of connections."""
    progress = Progress(
        TextColumn(batch.name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    left = [row for row in rows if row.key not in answers.done]
    async with RunClient(url, prefix=prefix) as client:
        with progress:
            progress.add_task(batch.name, total=len(rows), completed=len(rows) - len(left), failed=answers.failed)
            await batch.run(client, iter(left), answers, progress)


def main() -> int:
    """Run the batch."""
    arguments = _arguments()
    try:
        with arguments.rows.open(newline="", encoding="utf-8-sig") as file:
            rows = list(rows_of(file, arguments.key, arguments.input))
        answers = Answers(arguments.answers)
        batch = Batch(arguments.name or arguments.rows.name, arguments.team, arguments.in_flight)
        try:
            asyncio.run(run(batch, rows, answers, arguments.amqp_url, arguments.prefix))
        finally:
            answers.close()
    except (Mistake, StartupError, BrokerUnavailable, ClientError, OSError) as error:
        print(f"batch.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("batch.py: stopped; started again it goes on", file=sys.stderr)
        return 130
    return 1 if answers.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=HELP, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="the CSV file to read; its first line names the columns")
    parser.add_argument("answers", type=Path, help="the CSV file to write, or to go on with")
    parser.add_argument("--team", required=True, metavar="ID", help="the team to ask")
    parser.add_argument("--input", required=True, metavar="TEXT", help="what to ask, with {columns} of the row")
    parser.add_argument("--key", metavar="COLUMN", help="the column that tells rows apart (default: their number)")
    parser.add_argument("--name", metavar="NAME", help="the batch's name (default: that of the file of rows)")
    parser.add_argument("--in-flight", type=int, default=100, metavar="N", help="rows asked at a time (default: 100)")
    parser.add_argument("--prefix", default="batch", help="the workers' TEAMTURN_PREFIX (default: batch)")
    parser.set_defaults(amqp_url=os.environ.get("TEAMTURN_AMQP_URL", "amqp://guest:guest@localhost:5672/"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
