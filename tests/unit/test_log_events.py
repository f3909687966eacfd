"""What a worker logs: each event is documented with its level, and nothing is documented that is not logged."""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import structlog
from pydantic import TypeAdapter, ValidationError

from tests.support.workers import ROOT
from worker.cli.event_loop import run
from worker.operations.log_events import LOG_EVENTS, LogEvent
from worker.operations.logging import configure_logging

DOCUMENTED: dict[str, LogEvent] = {name: event for events in LOG_EVENTS.values() for name, event in events.items()}
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
SAID = "what somebody said"


def logged() -> Iterator[tuple[str, str, str]]:
    """Each event that is logged in the code: where, its name, and its level."""
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr=method), args=[*given]):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    assert isinstance(given[0], ast.Constant), f"{where}: the event is no constant"
                    yield where, str(given[0].value), LEVELS[method]
                case _:
                    pass


def test_each_event_of_the_code_is_documented_with_its_level_and_the_reverse() -> None:
    levels: defaultdict[str, set[str]] = defaultdict(set)
    for _, name, level in logged():
        levels[name].add(level)
    assert levels == {name: {event.level} for name, event in DOCUMENTED.items()}


def test_events_are_logged_by_that_name_alone_or_the_test_above_would_not_see_them() -> None:
    for path in (ROOT / "worker").rglob("*.py"):
        text = path.read_text()
        assert text.count("get_logger()") == text.count("\n_log = structlog.get_logger()\n"), path


def test_no_event_is_documented_twice_and_each_says_something() -> None:
    assert len(DOCUMENTED) == sum(map(len, LOG_EVENTS.values()))
    assert [name for name, event in DOCUMENTED.items() if len(event.meaning) < 10] == []


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield configure_logging
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level


def lines(written: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in written.splitlines()]


def fail() -> None:
    try:
        TypeAdapter(int).validate_python(SAID)
    except ValidationError as error:
        raise ExceptionGroup("several", [ValueError(SAID), KeyError(SAID)]) from error


def tell_all() -> None:
    """Log an error as the worker's code does, and as a library does, with whatever it says."""
    try:
        fail()
    except ExceptionGroup as error:
        structlog.get_logger().error("executor_failed", exc_info=error)
        logging.getLogger("asyncio").exception("never retrieved")
    logging.getLogger("openai._base_client").debug("Request options: %s", SAID)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_an_error_is_logged_with_its_place_and_without_its_text(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str], level: int
) -> None:
    configured(level=level)
    tell_all()
    written = capsys.readouterr().err
    assert SAID not in written
    assert len(lines(written)) == 2
    for line in lines(written):
        for told in ("in fail", "ValidationError", "builtins.ValueError", "builtins.KeyError", "TEAMTURN_LOG_CONTENT"):
            assert told in line["exception"]


def test_who_asks_for_content_has_the_text(configured: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configured(level=logging.DEBUG, content=True)
    tell_all()
    assert [SAID in str(line) for line in lines(capsys.readouterr().err)] == [True, True, True]


def test_an_error_that_is_its_own_cause_is_logged(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configured()
    error = ValueError(SAID)
    error.__cause__ = error
    structlog.get_logger().error("executor_failed", exc_info=error)
    assert "ValueError" in lines(capsys.readouterr().err)[0]["exception"]


@pytest.mark.parametrize(("level", "told"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_logged(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str], level: str, told: int
) -> None:
    configured(level=logging.getLevelNamesMapping()[level.upper()])
    log = structlog.get_logger()
    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)("lane_lost")
    assert len(lines(capsys.readouterr().err)) == told


def test_what_nobody_awaits_is_logged_without_what_was_said(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself asyncio writes the error's text, and what a callback was given."""

    async def fails() -> None:
        raise ValueError(SAID)

    def called(given: str) -> None:
        raise KeyError(given)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(called, SAID)
        forgotten = asyncio.create_task(fails(), name="forgotten")
        await asyncio.sleep(0.01)
        del forgotten
        gc.collect()

    configured()
    run(main())
    written = capsys.readouterr().err
    assert SAID not in written
    callback, task = lines(written)
    assert ("called" in callback["reason"], "in called" in callback["exception"]) == (True, True)
    assert (task["event"], task["task"], "in fails" in task["exception"]) == ("task_failed", "forgotten", True)


def test_of_a_record_that_can_not_be_rendered_only_its_logger_is_told(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configured()
    logging.getLogger("a.library").info("%d requests", SAID)
    written = capsys.readouterr().err
    assert SAID not in written
    (line,) = lines(written)
    assert (line["event"], line["logger"], line["error"]) == ("record_not_logged", "a.library", "TypeError")


def test_a_stranger_s_text_does_not_move_the_cursor_of_a_terminal(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configured()
    structlog.get_logger().warning("reply_to_forbidden", reply_to="a\x1b[2Jb\x9b", reason="of\r two words")
    written = capsys.readouterr().err
    assert r"a\x1b[2Jb\x9b" in written
    assert "[2J" not in written.replace(r"\x1b[2J", "")
    assert "\r" not in written


def test_a_library_whose_own_level_is_lower_prints_nothing_of_what_it_sends(
    configured: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured()
    library = logging.getLogger("openai")
    monkeypatch.setattr(library, "level", logging.DEBUG)
    library.debug("Request options: %s", SAID)
    library.info("ready")
    assert [line["event"] for line in lines(capsys.readouterr().err)] == ["ready"]
