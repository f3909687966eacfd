"""deploy/SECURITY.md: each claim's test is there, and each limit is the program's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schemas.errors import ErrorCode
from schemas.ids import MAX_ID_BYTES
from tests.support.manifests import DEPLOY, check_command
from tests.support.workers import ROOT
from worker.executors import journal, json_values
from worker.intake import control, forwarding
from worker.operations import logging, probes
from worker.replies import events
from worker.sessions import editing
from worker.sessions.statements import histories
from worker.settings import Settings
from worker.turns import coalescing, ending

PAGE = (DEPLOY / "SECURITY.md").read_text()
KIB, MIB = 2**10, 2**20


def test_every_test_that_it_names_is_there() -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    there = {path.name for path in files}
    there |= set(re.findall(r"def (test_\w+)\(", "".join(path.read_text() for path in files)))
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", PAGE))
    assert len(named) > 20
    assert named - there == set()


@pytest.mark.parametrize(
    ("row", "limits"),
    [
        ("a request's body", [f"{Settings().max_request_bytes // MIB} MiB"]),
        ("its JSON", [f"{json_values.MAX_LEVELS} levels", f"{json_values.MAX_VALUES:,}"]),
        ("an id", [f"{MAX_ID_BYTES} bytes"]),
        ("headers that", [f"{forwarding._MOST_HEADER_BYTES // KIB} KiB"]),
        ("a control message", [f"{control.LARGEST_BYTES // KIB} KiB"]),
        ("a session's state", [f"{json_values.MAX_STATE_BYTES // MIB} MiB"]),
        ("a session's name", [f"{editing.LONGEST_NAME_CHARACTERS} characters"]),
        ("the history", [f"{histories._MOST_HISTORY_BYTES // MIB} MiB"]),
        ("requests that join", [f"{coalescing.MOST_JOINED}", f"{coalescing.MOST_BYTES // MIB} MiB"]),
        (
            "a step's result",
            [
                f"{journal.MAX_STEP_BYTES // MIB} MiB",
                f"{journal.MAX_RECORDS:,} records, {journal.MAX_RECORDED_BYTES // MIB} MiB",
            ],
        ),
        ("a reply", [f"{ending.LARGEST_REPLY_BYTES // MIB} MiB"]),
        (
            "an event",
            [
                f"{events.LARGEST_EVENT_BYTES // MIB} MiB",
                f"{events.MOST_WAITING:,} or {events.MOST_BYTES // MIB} MiB",
            ],
        ),
        ("a text in a log line", [f"{logging._LONGEST_TEXT:,} characters"]),
        (
            "a request to the HTTP port",
            [
                f"{probes._MOST_REQUEST_BYTES // KIB} KiB, {probes._REQUEST_SECONDS:g} s",
                str(probes._MOST_CONNECTIONS),
            ],
        ),
    ],
)
def test_its_limits_are_the_program_s(row: str, limits: list[str]) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row}")]
    stated = line.split("|")[2]
    assert [limit for limit in limits if limit not in stated] == []


def test_the_codes_commands_and_files_that_it_names_are_there() -> None:
    limits = PAGE.partition("## Limits")[2].partition("## Secrets")[0]
    codes = {word for word in re.findall(r"`([a-z]+_[a-z_]+)`", limits) if not word.startswith("test_")}
    assert codes - {code.value for code in ErrorCode} == {"history_runs", "max_message_size"}
    for words in re.findall(r"`teamturn ([a-z ]+?)(?: --[a-z ]+)?`", PAGE):
        check_command(words.split())
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert links
    assert [link for link in links if not (DEPLOY / link).exists()] == []
