"""`teamturn dead`: what could not be executed, looked at, replayed and dropped."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from pamqp import encode
from rich.cells import cell_len

from tests.acceptance.stage import QUICKER, Stage, staged
from tests.support.broker import TestBroker
from tests.support.waiting import eventually
from tests.support.workers import environment_of, run_command
from worker.intake.topology import Topology, apply
from worker.operations.dead_letter_queue import dead_letter_queue
from worker.operations.dead_letters import dead_letter
from worker.sandbox import Sandbox
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

FINE, FAILED, MISTAKE = 0, 1, 2
WIDTH = 80
ODD = "[bold]séance[/bold] [/] 会議 ✓ [red"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J"
"""What sets a terminal's title and clears it."""

Ended = tuple[int, str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stage(
    sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates")) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def stage(module_stage: Stage) -> Stage:
    """A worker, and no dead letters."""
    await purge(module_stage.broker)
    return module_stage


async def purge(broker: TestBroker) -> None:
    await (await broker.channel.get_queue(f"{broker.prefix}.dead", ensure=False)).purge()


@pytest_asyncio.fixture(loop_scope="module")
async def quiet(module_stage: Stage) -> AsyncIterator[TestBroker]:
    """A prefix without a worker, on the module's database."""
    prefix = f"t-{uuid.uuid4().hex[:8]}"
    partitions = module_stage.settings.partitions
    async with TestBroker(module_stage.broker.url, prefix) as broker:
        await apply(broker.connection, Topology(prefix=prefix, partitions=partitions))
        yield broker
        await broker.delete_everything(partitions)


@pytest.fixture
def session() -> str:
    return f"session-{uuid.uuid4().hex[:12]}"


async def dead(where: Stage | Settings, *command: str) -> Ended:
    settings = where.settings if isinstance(where, Stage) else where
    environment = environment_of(settings, **QUICKER, COLUMNS=str(WIDTH), NO_COLOR="1")
    ended = await run_command("dead", *command, environment=environment)
    assert "Traceback" not in ended[2], ended[2]
    return ended


def only_line(ended: Ended) -> str:
    code, out, err = ended
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1), ended
    return err


async def bury(broker: TestBroker, body: dict[str, Any] | bytes, **headers: Any) -> None:
    """Put a message into the dead-letter queue, as a worker would."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    burial: dict[str, Any] = {
        "x-teamturn-code": "misrouted",
        "x-teamturn-reason": "the bindings are wrong",
        "x-teamturn-time": "2030-01-31T12:00:00+00:00",
    }
    message = Message(raw, content_type="application/json", delivery_mode=2, headers=burial | headers)
    await broker.channel.default_exchange.publish(message, f"{broker.prefix}.dead")


def request(session: str, text: str = "hello", *, team_id: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"run_id": str(uuid.uuid4()), "session_id": session, "team_id": team_id, "input": text} | fields


async def failed(stage: Stage, session: str, **fields: Any) -> dict[str, Any]:
    """A request whose run failed, is stored as ERROR, and lies in the dead-letter queue; its gate mends it."""
    asked = request(session, text=f"gate-{uuid.uuid4().hex[:8]}", team_id="mended", **fields)
    await stage.broker.publish(asked)
    assert (await stage.broker.reply(asked["run_id"]))["status"] == "ERROR"
    await bury(stage.broker, asked, **{"x-teamturn-code": "attempts_exhausted"})
    return asked


async def second_reply(stage: Stage, run_id: str) -> dict[str, Any]:
    def replies() -> list[AbstractIncomingMessage]:
        return [one for one in stage.broker.replies if one.message_id == run_id]

    await eventually(lambda: len(replies()) > 1)
    return dict(json.loads(replies()[1].body))


async def letters(stage: Stage) -> list[str]:
    """The ids of the dead letters, in order."""
    names = Topology(prefix=stage.settings.prefix, partitions=stage.settings.partitions)
    async with dead_letter_queue(stage.broker.connection, names) as queue:
        return [dead_letter(message).id async for message in queue.messages()]


# --- list ---


async def test_list_says_that_there_are_none(stage: Stage) -> None:
    assert await dead(stage, "list") == (FINE, "no dead letters\n", "")


async def test_list_says_why_and_whose(stage: Stage, session: str) -> None:
    asked = request(session)
    await bury(stage.broker, asked)
    code, out, err = await dead(stage, "list")
    assert (code, err) == (FINE, "")
    for shown in (asked["run_id"], "misrouted", "team echo", session, " B", "the bindings are wrong"):
        assert shown in out


async def test_list_shows_what_a_worker_buried(stage: Stage) -> None:
    await stage.broker.publish(b"{", routing_key="00")
    await eventually(lambda: _is_there(stage, 1))
    _, out, _ = await dead(stage, "list", "--json")
    found = json.loads(out)
    assert (found["code"], found["queue"]) == ("malformed_request", f"{stage.settings.prefix}.requests.0")


async def _is_there(stage: Stage, number: int) -> bool:
    return await stage.broker.depth("dead") == number


async def test_list_shows_what_rabbitmq_buried_itself(stage: Stage, quiet: TestBroker, session: str) -> None:
    settings = stage.settings.model_copy(update={"prefix": quiet.prefix})
    await quiet.publish(request(session), expiration=0.001)
    await eventually(lambda: _depth_is(quiet, "dead", 1))
    _, out, _ = await dead(settings, "list", "--json")
    found = json.loads(out)
    assert found["code"] == "expired"
    assert found["queue"].startswith(f"{quiet.prefix}.requests.")


async def _depth_is(broker: TestBroker, queue: str, number: int) -> bool:
    return await broker.depth(queue) == number


async def test_list_takes_nothing_out_and_keeps_the_order(stage: Stage, session: str) -> None:
    asked = [request(session) for _ in range(5)]
    for one in asked:
        await bury(stage.broker, one)
    for _ in range(2):
        _, out, _ = await dead(stage, "list", "--json")
        assert [json.loads(line)["id"] for line in out.splitlines()] == [one["run_id"] for one in asked]
    assert [(await stage.broker.dead_letter()).body for _ in asked] == [json.dumps(one).encode() for one in asked]


@pytest.mark.parametrize(
    "options",
    [
        ("--code", "other"),
        ("--session", "s-other"),
        ("--run", "r-other"),
        ("--team", "t-other"),
        ("--since", "2030-01-31T13:00:00Z"),
        ("--since", "2030-01-31T13:00:00Z", "--code", "other", "--team", "t-other"),
    ],
)
async def test_list_shows_what_agrees_with_all_filters(stage: Stage, session: str, options: tuple[str, ...]) -> None:
    other = {"x-teamturn-code": "other", "x-teamturn-time": "2030-01-31T14:00:00+00:00"}
    await bury(stage.broker, request(session))
    await bury(stage.broker, request("s-other", run_id="r-other", team_id="t-other"), **other)
    _, out, _ = await dead(stage, "list", "--json", *options)
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["r-other"]


async def test_list_says_what_it_did_not_look_at(stage: Stage, session: str) -> None:
    for _ in range(3):
        await bury(stage.broker, request(session))
    code, out, err = await dead(stage, "list", "--limit", "1", "--json")
    assert (code, len(out.splitlines())) == (FINE, 1)
    assert "2 more" in err


async def test_list_fits_into_80_columns_and_leaves_the_terminal_alone(stage: Stage) -> None:
    await bury(stage.broker, request(ODD, team_id=ODD), **{"x-teamturn-reason": HOSTILE + "very long " * 50})
    await bury(stage.broker, b"\xff", **{"x-teamturn-code": HOSTILE, "x-teamturn-time": HOSTILE})
    _, out, _ = await dead(stage, "list")
    assert [line for line in out.splitlines() if cell_len(line) > WIDTH] == []
    assert not set(out) & set(HOSTILE) & set("\x1b\x07\x9b")
    assert "[bold]séance[/bold]" in out


async def test_list_json_leaves_the_terminal_alone(stage: Stage) -> None:
    await bury(stage.broker, b"{", **{"x-teamturn-reason": HOSTILE})
    _, out, _ = await dead(stage, "list", "--json")
    assert json.loads(out)["reason"] == HOSTILE
    assert out.isascii()
    assert "\x1b" not in out


@pytest.mark.parametrize("since", ["yesterday", "", "5 weeks", "2030-13-01"])
async def test_a_time_that_is_none_is_named(stage: Stage, since: str) -> None:
    assert "--since" in only_line(await dead(stage, "list", "--since", since))


async def test_two_kinds_of_target_are_one_too_many(stage: Stage) -> None:
    assert "--team" in only_line(await dead(stage, "list", "--team", "a", "--agent", "b"))


@pytest.mark.parametrize("command", [("list",), ("show", "x"), ("replay", "--all"), ("drop", "--all", "--yes")])
async def test_without_a_topology_the_queue_is_named(stage: Stage, command: tuple[str, ...]) -> None:
    settings = stage.settings.model_copy(update={"prefix": "t-nowhere"})
    line = only_line(await dead(settings, *command))
    assert "t-nowhere.dead" in line
    assert "teamturn topology apply" in line


# --- show ---


async def test_show_prints_headers_properties_and_the_indented_body(stage: Stage, session: str) -> None:
    asked = request(session)
    await bury(stage.broker, asked, traceparent="00-abc")
    code, out, _ = await dead(stage, "show", asked["run_id"])
    assert code == FINE
    for shown in ("traceparent: 00-abc", "content_type: application/json", '\n  "input": "hello"'):
        assert shown in out


async def test_show_takes_the_digest_of_what_is_no_request(stage: Stage) -> None:
    await bury(stage.broker, b"no \xff request" + HOSTILE.encode())
    (letter,) = await letters(stage)
    code, out, _ = await dead(stage, "show", letter)
    assert code == FINE
    assert "no \ufffd request" in out
    assert not set(out) & set("\x1b\x07\x9b")


async def test_show_cuts_a_long_body_and_full_does_not(stage: Stage, session: str) -> None:
    asked = request(session, "long " * 5_000 + "end")
    await bury(stage.broker, asked)
    _, cut, _ = await dead(stage, "show", asked["run_id"])
    _, full, _ = await dead(stage, "show", asked["run_id"], "--full")
    assert (len(cut) < 6_000, "--full" in cut) == (True, True)
    assert asked["input"] in full


async def test_show_json_has_the_body_as_it_was_sent(stage: Stage) -> None:
    body = b'{"a": 1e400, "a":  2}'
    await bury(stage.broker, body)
    (letter,) = await letters(stage)
    _, out, _ = await dead(stage, "show", letter, "--json")
    assert json.loads(out)["body"] == body.decode()


async def test_show_of_an_id_that_is_not_there_is_one_line(stage: Stage) -> None:
    assert "nobody" in only_line(await dead(stage, "show", "nobody"))


# --- drop ---


async def test_drop_takes_out_what_is_named_and_keeps_the_others_in_order(stage: Stage, session: str) -> None:
    asked = [request(session) for _ in range(4)]
    for one in asked:
        await bury(stage.broker, one)
    ids = [one["run_id"] for one in asked]
    code, out, _ = await dead(stage, "drop", ids[1], ids[2], "--yes")
    assert (code, out.splitlines()[-1]) == (FINE, "2 dropped")
    assert await letters(stage) == [ids[0], ids[3]]


async def test_drop_by_code_leaves_the_others(stage: Stage, session: str) -> None:
    kept = request(session)
    await bury(stage.broker, b"{", **{"x-teamturn-code": "malformed_request"})
    await bury(stage.broker, kept)
    await dead(stage, "drop", "--code", "malformed_request", "--yes")
    assert await letters(stage) == [kept["run_id"]]


async def test_drop_says_which_id_is_not_there(stage: Stage) -> None:
    code, out, err = await dead(stage, "drop", "nobody", "--yes")
    assert (code, out) == (FAILED, "0 dropped\n")
    assert "nobody" in err


@pytest.mark.parametrize("command", ["drop", "replay"])
async def test_a_dry_run_only_says_what_would_be(stage: Stage, session: str, command: str) -> None:
    asked = request(session)
    await bury(stage.broker, asked)
    code, out, _ = await dead(stage, command, "--all", "--dry-run")
    assert (code, out.count("would be")) == (FINE, 2)
    assert await letters(stage) == [asked["run_id"]]
    assert await stage.runs(session) == []


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 1), ("", 1)])
async def test_drop_asks_first(stage: Stage, session: str, answer: str, left: int) -> None:
    await bury(stage.broker, request(session))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "dead", "drop", "--all"),
        env=environment_of(stage.settings, **QUICKER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(answer.encode())
    assert "Drop 1 dead letter for good?" in out.decode()
    assert b"Traceback" not in err
    assert process.returncode == (MISTAKE if left else FINE)
    assert len(await letters(stage)) == left


@pytest.mark.parametrize("command", ["drop", "replay"])
@pytest.mark.parametrize("options", [(), ("--all", "--code", "x"), ("--all", "x")], ids=["none", "both", "all and one"])
async def test_what_is_meant_must_be_said(stage: Stage, command: str, options: tuple[str, ...]) -> None:
    assert "--all" in only_line(await dead(stage, command, *options))


# --- replay ---


async def test_replay_has_a_request_executed_that_never_was(stage: Stage, session: str) -> None:
    asked = request(session)
    await bury(stage.broker, asked)
    code, out, _ = await dead(stage, "replay", asked["run_id"])
    assert (code, out.splitlines()[-1]) == (FINE, "1 replayed, 0 skipped")
    assert (await stage.broker.reply(asked["run_id"]))["content"] == "hello"
    assert await letters(stage) == []


async def test_replay_reopens_a_failed_run_as_the_session_s_latest_turn(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    after = request(session)
    await stage.broker.publish(after | {"team_id": "mended", "input": "other"})
    await stage.broker.reply(after["run_id"])
    stage.gates.open(asked["input"])
    code, out, _ = await dead(stage, "replay", asked["run_id"])
    assert code == FINE
    assert "reopened for attempt 2" in out
    reply = await second_reply(stage, asked["run_id"])
    assert (reply["status"], reply["attempt"], reply["turn"]) == ("COMPLETED", 2, 3)
    assert reply["content"]["attempt"] == 2
    runs = [(run["run_id"], run["status"]) for run in await stage.runs(session)]
    assert runs == [
        (f"{asked['run_id']}~1", "REGENERATED"),
        (after["run_id"], "ERROR"),
        (asked["run_id"], "COMPLETED"),
    ]


async def test_what_was_set_aside_is_no_history(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    stage.gates.open(asked["input"])
    await dead(stage, "replay", "--all")
    await second_reply(stage, asked["run_id"])
    again = request(session, asked["input"], team_id="mended")
    await stage.broker.publish(again)
    assert (await stage.broker.reply(again["run_id"]))["content"]["history"] == [asked["input"]]


async def test_a_failed_run_can_be_replayed_again_and_again(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    for attempt in (2, 3):
        _, out, _ = await dead(stage, "replay", "--all")
        assert f"attempt {attempt}" in out
        await eventually(lambda attempt=attempt: _runs_are(stage, session, attempt))  # type: ignore[misc]
        await bury(stage.broker, asked)
    assert [run["status"] for run in await stage.runs(session)] == ["REGENERATED", "REGENERATED", "ERROR"]


async def _runs_are(stage: Stage, session: str, number: int) -> bool:
    return len(await stage.runs(session)) == number


async def test_a_producer_that_sends_a_failed_run_again_gets_the_stored_reply(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    stage.gates.open(asked["input"])
    await stage.broker.publish(asked)
    assert (await second_reply(stage, asked["run_id"]))["status"] == "ERROR"
    assert [run["status"] for run in await stage.runs(session)] == ["ERROR"]


async def test_a_dead_letter_that_was_replayed_twice_is_executed_once(stage: Stage, session: str) -> None:
    """As if the command had died between the confirm and the acknowledgement."""
    asked = await failed(stage, session)
    await bury(stage.broker, asked)
    stage.gates.open(asked["input"])
    await dead(stage, "replay", "--all")
    await second_reply(stage, asked["run_id"])
    await dead(stage, "replay", "--all")
    statuses = [run["status"] for run in await stage.runs(session)]
    assert statuses == ["REGENERATED", "COMPLETED"]


async def test_replay_of_a_deleted_session_s_run_begins_it_anew(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    await stage.database.execute("delete from ai.agno_sessions where session_id = $1", session)
    stage.gates.open(asked["input"])
    _, out, _ = await dead(stage, "replay", "--all")
    assert "deleted" in out
    reply = await second_reply(stage, asked["run_id"])
    assert (reply["status"], reply["turn"], reply["attempt"]) == ("COMPLETED", 1, 2)


async def test_replay_leaves_a_session_alone_whose_turn_is_being_executed(stage: Stage, session: str) -> None:
    asked = await failed(stage, session)
    await _locked_by_another(stage, session)
    try:
        code, out, _ = await dead(stage, "replay", "--all")
    finally:
        await stage.database.execute("select pg_advisory_unlock_all()")
    assert (code, out.splitlines()[-1]) == (FAILED, "0 replayed, 1 skipped")
    assert "a worker is at a turn of its session" in out
    assert await letters(stage) == [asked["run_id"]]


async def _locked_by_another(stage: Stage, session: str) -> None:
    locked = "set search_path to ai; select pg_advisory_lock(ai.session_lock_key('{}')); reset search_path"
    await stage.database.execute(locked.format(session))


async def test_replay_leaves_what_is_no_request(stage: Stage, session: str) -> None:
    asked = request(session)
    await bury(stage.broker, b"{")
    await bury(stage.broker, asked)
    code, out, _ = await dead(stage, "replay", "--all")
    assert (code, out.splitlines()[-1]) == (FAILED, "1 replayed, 1 skipped")
    assert "it would only come back: malformed_request" in out
    assert asked["run_id"] not in await letters(stage)


async def test_replay_leaves_a_request_without_a_run_id(stage: Stage, session: str) -> None:
    """Its copy in the queue has a message_id, which the client made up for it."""
    asked = request(session)
    del asked["run_id"]
    with pytest.MonkeyPatch.context() as patched:
        original = encode.METHODS["shortstr"]
        patched.setitem(encode.METHODS, "shortstr", lambda text: b"\x00" if text == "none" else original(text))
        await stage.broker.publish(asked, message_id="none")
    await eventually(lambda: _is_there(stage, 1))
    code, out, _ = await dead(stage, "replay", "--all")
    assert code == FAILED
    assert "missing_run_id" in out


async def test_replay_leaves_a_request_whose_deadline_has_passed(stage: Stage, session: str) -> None:
    await bury(stage.broker, request(session, deadline="2020-01-31T12:00:00Z"))
    code, out, _ = await dead(stage, "replay", "--all")
    assert code == FAILED
    assert "deadline" in out


async def test_replay_leaves_another_s_run_alone(stage: Stage, session: str) -> None:
    asked = await failed(stage, session, user_id="alice")
    await purge(stage.broker)
    await bury(stage.broker, asked | {"user_id": "mallory"})
    code, out, _ = await dead(stage, "replay", "--all")
    assert code == FAILED
    assert "another request's" in out
    assert [run["status"] for run in await stage.runs(session)] == ["ERROR"]


async def test_replay_json_says_what_was_done(stage: Stage, session: str) -> None:
    asked = request(session)
    await bury(stage.broker, asked)
    _, out, _ = await dead(stage, "replay", "--all", "--json")
    assert json.loads(out) == {"id": asked["run_id"], "action": "replayed", "detail": None, "dry_run": False}


async def test_replay_publishes_what_was_sent_and_nothing_of_the_burial(
    stage: Stage, quiet: TestBroker, session: str
) -> None:
    settings = stage.settings.model_copy(update={"prefix": quiet.prefix})
    asked = request(session)
    await quiet.publish(
        asked,
        headers={"traceparent": "00-abc", "x-teamturn-passed-on": "1"},
        message_id="m1",
        correlation_id="c1",
        reply_to="somewhere",
        expiration=0.001,
    )
    await eventually(lambda: _depth_is(quiet, "dead", 1))
    code, _, _ = await dead(settings, "replay", "--all")
    assert code == FINE
    message = await _requested(quiet, stage.settings.partitions)
    assert message.body == json.dumps(asked).encode()
    assert message.headers == {"traceparent": "00-abc"}
    assert (message.message_id, message.correlation_id, message.reply_to, message.expiration) == (
        *("m1", "c1", "somewhere", None),
    )
    assert message.delivery_mode == 2


async def _requested(broker: TestBroker, partitions: int) -> AbstractIncomingMessage:
    """The next request in any of the partitions."""
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    channel = await broker.connection.channel()
    for number in range(partitions):
        queue = await channel.get_queue(f"{broker.prefix}.requests.{number}", ensure=False)
        await queue.consume(arrived.put)
    async with asyncio.timeout(20):
        message = await arrived.get()
    await message.ack()
    await channel.close()
    return message


async def test_replay_without_where_to_publish_loses_nothing(stage: Stage, quiet: TestBroker, session: str) -> None:
    settings = stage.settings.model_copy(update={"prefix": quiet.prefix})
    await bury(quiet, request(session))
    await quiet.channel.exchange_delete(f"{quiet.prefix}.requests")
    assert "teamturn topology apply" in only_line(await dead(settings, "replay", "--all"))
    assert await quiet.depth("dead") == 1


async def test_replay_goes_on_without_what_is_buried_meanwhile(stage: Stage, session: str) -> None:
    """What comes back at once, because it fails again, is not replayed without end."""
    for _ in range(3):
        await bury(stage.broker, request(session, on_busy="reject"))
    code, out, _ = await dead(stage, "replay", "--all")
    assert (code, out.splitlines()[-1]) == (FINE, "3 replayed, 0 skipped")
