"""Secrets: found in the environment, and cut out of every line that is logged."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import attach, detach

from worker.operations.logging import Redaction, configure_logging, secrets_in
from worker.operations.tracing import context_of

_SECRETS = st.lists(st.text(min_size=1, max_size=12), max_size=5)


@pytest.mark.parametrize(
    ("environment", "secrets"),
    [
        ({}, set()),
        ({"OPENAI_API_KEY": "sk-12345"}, {"sk-12345"}),
        (
            {"GITHUB_TOKEN": "ghp_12345", "APP_SECRET": "shhhhh", "DB_PASSWORD": "pass12"},
            {"ghp_12345", "shhhhh", "pass12"},
        ),
        ({"PGPASSWORD": "pass12"}, {"pass12"}),
        ({"KEY_FILE": "/etc/keys", "TOKENS": "many of them", "HOME": "/home/somebody"}, set()),
        ({"A_KEY": "short"}, set()),
        ({"A_KEY": "sixsix"}, {"sixsix"}),
        ({"TEAMTURN_AMQP_URL": "amqp://user:hunter2hunter2@h:5672/"}, {"hunter2hunter2"}),
        ({"TEAMTURN_POSTGRES_URL": "postgresql+psycopg://user:p%40ssword@h/d"}, {"p%40ssword", "p@ssword"}),
        ({"TEAMTURN_AMQP_URL": "amqp://guest:guest@localhost/"}, set()),
        ({"TEAMTURN_AMQP_URL": "amqp://localhost/"}, set()),
        ({"TEAMTURN_AMQP_URL": "amqp://user:hunter2hunter2@[::1/"}, {"hunter2hunter2"}),
        ({"DATABASE_URL": "postgresql://user:hunter2hunter2@h/d"}, {"hunter2hunter2"}),
        ({"DATABASE": "postgresql://user:hunter2hunter2@h/d"}, set()),
        ({"TEAMTURN_POSTGRES_URL": "postgresql://h/d?user=u&password=hunter2hunter2"}, {"hunter2hunter2"}),
        ({"TEAMTURN_POSTGRES_URL": "postgresql://h/d?sslkey=/etc/ours.key&sslpassword=hunter2"}, {"hunter2"}),
        ({"my_api_key": "sk-12345", "App_Secret": "shhhhh"}, {"sk-12345", "shhhhh"}),
        ({"PWD": "/home/somebody", "OLDPWD": "/home/somebody", "COMPAT": "version-5", "BYPASS": "/healthz"}, set()),
        ({"service_url": "https://user:hunter2hunter2@h/"}, {"hunter2hunter2"}),
        ({"MONGO_URI": "mongodb://user:hunter2hunter2@h1,h2/d"}, {"hunter2hunter2"}),
        ({"MCP_URL": "https://h/mcp?api_key=a%2Bb%20c-12345"}, {"a%2Bb%20c-12345", "a+b c-12345"}),
        ({"MCP_URL": "https://h/mcp?api_key=a+b-12345"}, {"a+b-12345", "a b-12345"}),
        ({"MCP_URL": "https://h/mcp#access_token=at-12345"}, {"at-12345"}),
        ({"MCP_URL": "https://h/?key=first-1&mode=stateless&sig=second-2;x"}, {"first-1", "second-2;x"}),
        ({"DB_DSN": "host=h user=somebody password=hunter2hunter2 dbname=d"}, {"hunter2hunter2"}),
        ({"DB_DSN": "host=h password = 'hunter two'"}, {"hunter two"}),
        ({"DB_DSN": "Server=h;Pwd=hunter2hunter2;Database=d"}, {"hunter2hunter2"}),
    ],
    ids=lambda given: str(sorted(given)),
)
def test_secrets_are_found_by_the_names_of_their_variables_and_in_our_urls(
    environment: dict[str, str], secrets: set[str]
) -> None:
    assert secrets_in(environment) == secrets


_ENDINGS = ["pass", "pat", "pwd", "passwd", "credential", "credentials", "passphrase", "sig", "signature", "auth"]


@pytest.mark.parametrize("ending", [*_ENDINGS, "authorization", "key", "token", "secret", "password"])
def test_what_is_called_a_secret_is_one_as_a_variable_and_as_a_parameter_of_a_url(ending: str) -> None:
    assert secrets_in({f"SOME_{ending.upper()}": "hunter2"}) == {"hunter2"}
    assert secrets_in({f"some_{ending}": "hunter2"}) == {"hunter2"}
    assert secrets_in({"A_URL": f"https://h/?a=b12345&{ending}=hunter2"}) == {"hunter2"}
    assert secrets_in({"A_URL": f"https://h/?X-Some-{ending.title()}=hunter2&a=b12345"}) == {"hunter2"}


@pytest.mark.parametrize(
    ("secrets", "text", "redacted"),
    [
        ([], "nothing to hide", "nothing to hide"),
        (["hunter2"], "a hunter2 b hunter2", "a *** b ***"),
        (["abc", "abcdef"], "abcdef abc", "*** ***"),
        (["a.c", "(", "[x]*"], "abc a.c ( [x]*", "abc *** *** ***"),
        (["hunter2"], "HUNTER2", "HUNTER2"),
    ],
)
def test_each_secret_is_replaced_wherever_it_stands(secrets: list[str], text: str, redacted: str) -> None:
    assert Redaction(secrets)(text) == redacted


@given(_SECRETS, st.lists(st.text(max_size=10), max_size=5))
def test_no_secret_is_left_in_any_text(secrets: list[str], pieces: list[str]) -> None:
    text = "".join(piece + secret for piece, secret in zip(pieces, secrets, strict=False))
    redacted = Redaction(secrets)(text)
    rest = redacted.split("***")
    assert all(secret not in part for secret in secrets for part in rest if secret != "***")


Log = Callable[[], list[str]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Log]]:
    """Configure logging as a worker with some environment does; return what is written, line by line."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {
        name: logging.getLogger(name).level
        for name in ("aio_pika", "aiormq", "httpx", "httpx2", "opentelemetry.trace.span")
    }
    before = structlog.get_config()

    def configured(*, content: bool = False, **environment: str) -> Log:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        written = io.StringIO()
        monkeypatch.setattr("sys.stderr", written)
        configure_logging(content=content)
        return lambda: written.getvalue().splitlines()

    yield configured
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def _event(line: str) -> dict[str, Any]:
    return dict(json.loads(line))


def test_an_event_is_one_line_of_json_with_its_time_and_level(lines: Callable[..., Log]) -> None:
    written = lines()
    structlog.get_logger().info("turn_finished", run_id="r1", text="é\nnext")
    (line,) = written()
    event = _event(line)
    assert (event["event"], event["level"], event["run_id"], event["text"]) == (
        "turn_finished",
        "info",
        "r1",
        "é\nnext",
    )
    assert event["timestamp"].endswith("Z")


def test_a_line_that_nobody_can_be_told_is_no_error(lines: Callable[..., Log]) -> None:
    lines()
    sys.stderr.close()
    structlog.get_logger().error("turn_finished")


def test_what_a_turn_binds_is_in_its_events_and_in_libraries_records(lines: Callable[..., Log]) -> None:
    written = lines()
    with structlog.contextvars.bound_contextvars(run_id="r1"):
        structlog.get_logger().info("ours")
        logging.getLogger("asyncpg").warning("theirs: %s", 5)
    ours, theirs = map(_event, written())
    assert ours["run_id"] == theirs["run_id"] == "r1"
    assert theirs["event"] == "theirs: 5"


def test_what_is_logged_within_a_trace_says_which(lines: Callable[..., Log]) -> None:
    written = lines()
    parent = context_of({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    assert parent is not None
    token = attach(parent)
    try:
        structlog.get_logger().info("ours")
        logging.getLogger("asyncpg").warning("theirs")
    finally:
        detach(token)
    structlog.get_logger().info("after")
    ours, theirs, after = map(_event, written())
    assert {(one["trace_id"], one["span_id"]) for one in (ours, theirs)} == {("a" * 32, "b" * 16)}
    assert "trace_id" not in after


def test_an_exception_is_in_the_line_of_its_event_without_the_secret_in_its_text(lines: Callable[..., Log]) -> None:
    written = lines(OPENAI_API_KEY="sk-hunter2hunter2")
    try:
        int("key sk-hunter2hunter2")
    except ValueError:
        structlog.get_logger().exception("executor_failed", header={"x": ["sk-hunter2hunter2"]})
    (line,) = written()
    assert "ValueError" in line
    assert "key ***" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "secret",
    ['quo"ted-secret', "back\\slash-secret", "tab\tbed-secret", "ünïcode-secret"],
    ids=["quote", "backslash", "control character", "not ASCII"],
)
def test_a_secret_is_cut_out_also_where_json_writes_it_differently(lines: Callable[..., Log], secret: str) -> None:
    written = lines(MY_PASSWORD=secret)
    structlog.get_logger().info("connecting", password=secret, text=f"with {secret}!")
    (line,) = written()
    event = _event(line)
    assert secret not in event["password"]
    assert secret not in event["text"]


def test_the_line_is_still_json_after_a_secret_was_cut_out(lines: Callable[..., Log]) -> None:
    written = lines(MY_PASSWORD='secret", "a": "b')
    structlog.get_logger().info("x", text='secret", "a": "b')
    (line,) = written()
    _event(line)


@pytest.mark.parametrize(
    "text",
    [
        "401 for headers {'Authorization': 'Bearer sk-hunter2hunter2', 'Accept': '*/*'}",
        "Authorization: Basic c2stOmh1bnRlcjI=",
        "authorization=sk-hunter2hunter2&next=1",
        'POST with {"x-api-key": "sk-hunter2hunter2"}',
        "curl -H 'X-API-Key: sk-hunter2hunter2'",
        "api_key='sk-hunter2hunter2' was refused",
        "refused: bearer sk-hunter2hunter2",
        "can't reach amqps://user:sk-hunter2hunter2@mq.example:5671/",
        "postgresql://user:sk-hunter2%20hunter2%40@db/app",
    ],
)
def test_a_credential_that_nobody_named_is_known_by_what_stands_before_it(text: str) -> None:
    redacted = Redaction([])(text)
    assert "***" in redacted
    assert "hunter2" not in redacted
    assert "c2stOmh1bnRlcjI" not in redacted


@pytest.mark.parametrize(
    "text",
    [
        "no authorization was given for it",
        "the bearer of this letter",
        "see https://example.org:8080/docs and mailto:a@b.example",
        "TEAMTURN_AMQP_URL must look like amqp://host:5672/",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert Redaction([])(text) == text


def test_no_text_in_a_line_is_endless_and_of_a_traceback_both_ends_are_seen(lines: Callable[..., Log]) -> None:
    written = lines(content=True)
    try:
        raise ValueError(f"{'x' * 1_000_000} at the end")  # noqa: TRY301 - it is to be logged
    except ValueError:
        structlog.get_logger().exception("tool_failed", given=["y" * 1_000_000])
    (line,) = written()
    assert len(line) < 100_000
    event = _event(line)
    assert "Traceback" in event["exception"]
    assert event["exception"].endswith("at the end")


@pytest.mark.parametrize("secret", ["s3cret" * 3, "L" * 9_000])
def test_a_secret_is_cut_out_wherever_a_text_is_shortened(secret: str) -> None:
    redact = Redaction([secret])
    for step in range(0, 2 * len(secret), len(secret) // 3):
        for text in (f"{'x' * (8_192 - step)}{secret}{'y' * 40_000}", f"{'x' * 40_000}{secret}{'y' * (8_192 - step)}"):
            shown = redact.all_in(text[-60_000:])
            assert secret[:6] not in shown
            assert len(shown) < 17_000
    assert secret[:6] not in redact.all_in(secret * (60_000 // len(secret)))


def test_of_an_endless_text_no_more_is_looked_through_than_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def looked_through(_: Redaction, text: str) -> str:
        seen.append(len(text))
        return text

    monkeypatch.setattr(Redaction, "__call__", looked_through)
    Redaction([]).all_in("x" * 16_000_000)
    assert sum(seen) < 50_000


def test_a_tracestate_that_is_none_is_no_line_in_the_log(lines: Callable[..., Log]) -> None:
    written = lines()
    assert context_of({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "what a producer says"}) is not None
    assert written() == []
