"""`teamturn chat`, as people use it in a terminal of 80 columns, and through a pipe."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from tests.acceptance.stage import QUICKER, Stage, staged
from tests.support.broker import TestBroker
from tests.support.commands import COMPLETED, FAILED, MISTAKE, ODD, WIDTH, Ended
from tests.support.proxy import Proxy
from tests.support.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, Terminal
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of
from worker.intake.topology import Topology, apply
from worker.sandbox import Sandbox
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

INTERRUPTED = 130
SHARED = "shared"
"""The session of the chat that many tests talk in."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One worker, and the sessions of all tests of this module."""
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates"), teams="chat_teams:everything") as stage:
        yield stage


@pytest.fixture
def session() -> str:
    """A session id of the test's own."""
    return f"session-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def gate() -> str:
    """A gate of the test's own."""
    return f"gate-{uuid.uuid4().hex[:6]}"


@pytest_asyncio.fixture(loop_scope="module")
async def declared(stage: Stage) -> AsyncIterator[Settings]:
    """A prefix with its topology and without a worker."""
    settings = stage.settings.model_copy(update={"prefix": f"t-{uuid.uuid4().hex[:8]}"})
    async with TestBroker(settings.amqp_url.get_secret_value(), settings.prefix) as broker:
        await apply(broker.connection, Topology(prefix=settings.prefix, partitions=settings.partitions))
        yield settings
        await broker.delete_everything(settings.partitions)


def surroundings(settings: Settings, state: Path, **environment: str) -> dict[str, str]:
    return environment_of(settings, **{**QUICKER, "XDG_STATE_HOME": str(state), **environment})


def chat(stage: Stage, state: Path, *options: str, settings: Settings | None = None, **environment: str) -> Terminal:
    """`teamturn chat` in a terminal; with the team `talker`, unless a target is named."""
    named = any(option in {"--team", "--agent", "--workflow", "--continue"} for option in options)
    words = ("chat", *options, *(() if named else ("--team", "talker")))
    return Terminal(*words, environment=surroundings(settings or stage.settings, state, **environment))


async def piped(stage: Stage, state: Path, said: str, *options: str, **environment: str) -> Ended:
    """What `teamturn chat` makes of what comes through a pipe."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "chat", *options),
        env=surroundings(stage.settings, state, **environment),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(said.encode())
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talking(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Terminal]:
    """One chat, and the talk of many tests: it takes a second to start."""
    async with chat(stage, tmp_path_factory.mktemp("state"), "--session", SHARED) as terminal:
        yield terminal


# --- in a terminal ---


async def test_a_conversation_goes_on_over_its_turns(stage: Stage, tmp_path: Path, session: str) -> None:
    async with chat(stage, tmp_path, "--session", session) as terminal:
        assert await terminal.answer_to("hello") == ["You said hello."]
        assert await terminal.answer_to("and again") == ["You said and again."]
        await terminal.say("/quit")
        assert await terminal.exited() == COMPLETED
        await terminal.shows(lambda rows: rows[-1] == "")
        assert [row for row in terminal.rows if row.endswith(">")] == [], "no prompt is left behind"
    runs = await stage.runs(session)
    assert [run["input"]["input_content"] for run in runs] == ["hello", "and again"]


async def test_an_answer_is_shown_as_it_is_written(stage: Stage, talking: Terminal, gate: str) -> None:
    await talking.say(f"hold {gate}")
    await talking.shows(lambda rows: rows[-2:] == [f"before {gate},", "answering>"])
    stage.gates.open(gate)
    await talking.has_row(f"before {gate}, and behind")
    await talking.prompted()
    assert f"before {gate}," not in talking.rows, "what was unfinished is not left behind"


async def test_a_long_answer_is_broken_at_spaces(talking: Terminal) -> None:
    rows = await talking.answer_to("long")
    assert " ".join(rows).split() == [f"word{number}" for number in range(60)]
    assert len(rows) == 6
    assert all(row.startswith("word") for row in rows)


async def test_wide_characters_are_counted_as_two_columns(talking: Terminal) -> None:
    rows = await talking.answer_to("wide")
    assert rows == [*[" ".join(["会議"] * 16)] * 3, "会議 会議"]


async def test_lines_of_an_answer_are_kept(talking: Terminal) -> None:
    assert await talking.answer_to("lines") == ["one", "", "  two", "three"]


async def test_what_members_and_tools_do_is_shown_indented_and_dim(stage: Stage, tmp_path: Path) -> None:
    async with chat(stage, tmp_path, "--team", "shop") as terminal:
        rows = await terminal.answer_to("tea")
        written = terminal.written.decode()
    assert rows == [
        *("  · clerk …", '    · remember({"what":"tea"})', "  · state: seen = tea"),
        *("  clerk: The tea is ready.", "Here you are."),
    ]
    assert "\x1b[2m  · clerk …" in written


async def test_without_colour_nothing_is_dim(stage: Stage, tmp_path: Path) -> None:
    async with chat(stage, tmp_path, "--team", "shop", NO_COLOR="1") as terminal:
        assert "  · clerk …" in await terminal.answer_to("tea")
        assert "\x1b[2m" not in terminal.written.decode()
        assert "\x1b[1m" not in terminal.written.decode()


async def test_an_answer_moves_no_cursor_and_sets_no_title(talking: Terminal) -> None:
    assert await talking.answer_to("hostile") == ["�]0;owned��[2J�31mred�over"]
    assert not talking.screen.title_set


async def test_a_failed_turn_is_a_sentence_with_its_code_and_the_chat_goes_on(stage: Stage, tmp_path: Path) -> None:
    async with chat(stage, tmp_path, "--team", "broken") as terminal:
        said = " ".join(await terminal.answer_to("hello"))
        assert said.startswith("It failed: ")
        assert said.endswith("(executor_failed).")
        assert await terminal.answer_to("get well") == ["well"]


async def test_a_refused_request_is_a_sentence_with_its_code(stage: Stage, tmp_path: Path) -> None:
    async with chat(stage, tmp_path, "--team", "nobody") as terminal:
        said = " ".join(await terminal.answer_to("hello"))
        assert said.startswith("Refused: ")
        assert said.endswith("(unknown_target).")


@pytest.mark.parametrize("told", ["/cancel" + ENTER, CTRL_C], ids=["cancel", "ctrl-c"])
async def test_an_answer_is_cancelled_while_it_is_written(
    stage: Stage, talking: Terminal, gate: str, told: str
) -> None:
    await talking.say(f"hold {gate}")
    await talking.shows(lambda rows: rows[-2:] == [f"before {gate},", "answering>"])
    talking.type(told)
    await talking.has_row("Cancelled (cancelled).")
    assert await talking.answer_to("hello") == ["You said hello."]
    statuses = {run["input"]["input_content"]: run["status"] for run in await stage.runs(SHARED)}
    assert (statuses[f"hold {gate}"], statuses["hello"]) == ("CANCELLED", "COMPLETED")


async def test_a_second_ctrl_c_leaves_and_says_where_the_answer_will_be(
    stage: Stage, declared: Settings, tmp_path: Path, session: str
) -> None:
    """Where no worker is there to cancel."""
    async with chat(stage, tmp_path, "--session", session, settings=declared) as terminal:
        await terminal.say("hello")
        await terminal.prompted("waiting")
        terminal.type(CTRL_C)
        await terminal.prompted("cancelling")
        terminal.type(CTRL_C)
        assert await terminal.exited() == COMPLETED
        await terminal.has_row(f"· the request goes on; its answer will be in the session {session}"[:WIDTH])


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D], ids=["ctrl-c", "ctrl-d"])
async def test_the_prompt_is_left_by_a_key(stage: Stage, tmp_path: Path, key: str) -> None:
    async with chat(stage, tmp_path) as terminal:
        await terminal.prompted()
        terminal.type(key)
        assert await terminal.exited() == COMPLETED
        assert "Traceback" not in terminal.written.decode()


async def test_what_is_typed_while_an_answer_is_written_is_sent_after_it(
    stage: Stage, talking: Terminal, gate: str
) -> None:
    await talking.say(f"hold {gate}")
    await talking.prompted("answering")
    talking.type(f"and then {gate}{ENTER}")
    await talking.has_row(f"· waits for its turn: and then {gate}")
    stage.gates.open(gate)
    await talking.has_row(f"You said and then {gate}.")
    rows = talking.rows
    assert rows[rows.index(f"You said and then {gate}.") - 1] == f"> and then {gate}", "a question above its answer"


async def test_alt_enter_begins_a_line_of_the_same_message(stage: Stage, talking: Terminal) -> None:
    await talking.prompted()
    talking.type(f"one{ALT_ENTER}two{ENTER}")
    await talking.has_row("You said one")
    await talking.prompted()
    assert "one\ntwo" in [run["input"]["input_content"] for run in await stage.runs(SHARED)]


async def test_bytes_that_are_no_text_do_not_end_the_chat(talking: Terminal) -> None:
    await talking.prompted()
    talking.type(b"caf\xe9\r")
    await talking.has_row("You said caf?.")


async def test_state_and_history_are_what_is_stored(stage: Stage, tmp_path: Path, session: str) -> None:
    async with chat(stage, tmp_path, "--team", "shop", "--session", session) as terminal:
        assert await terminal.answer_to("/state") == ["Nothing is stored of this session yet."]
        await terminal.answer_to("tea")
        assert await terminal.answer_to("/state") == ["{", '  "seen": "tea"', "}"]
        history = await terminal.answer_to("/history")
    assert history[0] == f"session {session}"
    assert "  > tea" in history
    assert "      The tea is ready." in history
    assert "  Here you are." in history


async def test_somebody_else_s_session_is_not_shown(stage: Stage, tmp_path: Path, session: str) -> None:
    await stage.broker.reply(await stage.broker.ask(session, "secret", team_id="talker", user_id="ada"))
    async with chat(stage, tmp_path, "--session", session, "--user", "bob") as terminal:
        assert await terminal.answer_to("/history") == ["The session belongs to somebody else."]


async def test_without_postgres_the_chat_goes_on_and_says_what_does_not(stage: Stage, tmp_path: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nowhere"
    async with chat(stage, tmp_path, TEAMTURN_POSTGRES_URL=nowhere) as terminal:
        assert "Postgres can't be reached at 127.0.0.1:1" in " ".join(await terminal.answer_to("/state"))
        assert await terminal.answer_to("hello") == ["You said hello."]


async def test_help_lists_the_commands(talking: Terminal) -> None:
    listed = [row.split()[0] for row in await talking.answer_to("/help") if row.startswith("/")]
    assert listed == ["/state", "/history", "/cancel", "/quit", "/help"]


async def test_an_unknown_command_is_explained(talking: Terminal) -> None:
    said = " ".join(await talking.answer_to("/what is this"))
    assert said.startswith("There is no command /what; /help lists them.")


async def test_cancel_says_so_where_there_is_nothing_to_cancel(talking: Terminal) -> None:
    assert await talking.answer_to("/cancel") == ["· nothing is being answered"]


async def test_a_text_that_begins_with_a_slash_is_written_with_two(talking: Terminal) -> None:
    await talking.say("//etc/hosts")
    await talking.has_row("You said /etc/hosts.")


async def test_calls_that_need_approval_are_asked_for_and_the_answer_follows(
    stage: Stage, tmp_path: Path, session: str
) -> None:
    async with chat(stage, tmp_path, "--team", "till", "--session", session) as terminal:
        await terminal.say("pay them")
        await terminal.has_row('It asks to call pay({"whom":"ann"}).')
        await terminal.prompted("y/n")
        assert 'It asks to call pay({"whom":"bob"}).' not in terminal.rows, "one after the other"
        terminal.type(f"maybe{ENTER}")
        await terminal.has("· y or yes: it is called;")
        terminal.type(f"y{ENTER}")
        await terminal.has_row('It asks to call pay({"whom":"bob"}).')
        terminal.type(f"no, not him{ENTER}")
        await terminal.has_row("paid ann and not him")
        await terminal.prompted()
    assert [run["status"] for run in await stage.runs(session)] == ["PAUSED", "COMPLETED"]


@pytest.mark.parametrize("told", ["/cancel" + ENTER, CTRL_C], ids=["cancel", "ctrl-c"])
async def test_a_question_can_be_left_open(stage: Stage, tmp_path: Path, session: str, told: str) -> None:
    async with chat(stage, tmp_path, "--team", "till", "--session", session) as terminal:
        await terminal.say("pay them")
        await terminal.prompted("y/n")
        terminal.type(told)
        await terminal.has("· nothing is decided")
        await terminal.prompted()
    assert [run["status"] for run in await stage.runs(session)] == ["PAUSED"]


async def test_it_goes_on_when_rabbitmq_was_away_during_an_answer(
    stage: Stage, tmp_path: Path, session: str, gate: str
) -> None:
    async with Proxy(stage.broker.url) as line:
        settings = stage.settings.model_copy(update={"amqp_url": SecretStr(line.url)})
        async with chat(stage, tmp_path, "--session", session, settings=settings) as terminal:
            await terminal.say(f"hold {gate}")
            await terminal.prompted("answering")
            line.is_down = True
            line.cut()
            await terminal.prompted("no connection")
            await eventually(lambda: line.refused > 0)
            stage.gates.open(gate)
            line.is_down = False
            await terminal.has_row(f"before {gate}, and behind")
            await terminal.prompted()
            assert sum("the chat goes on when that is over" in row for row in terminal.rows) == 1
    assert len(await stage.runs(session)) == 1, "it was executed once"


async def test_it_goes_on_when_rabbitmq_was_away_before_a_question(stage: Stage, tmp_path: Path) -> None:
    async with Proxy(stage.broker.url) as line:
        settings = stage.settings.model_copy(update={"amqp_url": SecretStr(line.url)})
        async with chat(stage, tmp_path, settings=settings) as terminal:
            await terminal.answer_to("hello")
            line.cut()
            assert (await terminal.answer_to("again"))[-1] == "You said again."


async def test_continue_goes_on_with_the_last_session(stage: Stage, tmp_path: Path, session: str) -> None:
    await piped(stage, tmp_path, "first\n", "--team", "talker", "--session", session)
    async with chat(stage, tmp_path, "--continue") as terminal:
        assert await terminal.answer_to("second") == ["You said second."]
    assert len(await stage.runs(session)) == 2


# --- through a pipe ---


async def test_each_line_of_a_pipe_is_a_turn_and_the_answers_alone_are_on_standard_output(
    stage: Stage, tmp_path: Path, session: str
) -> None:
    code, out, err = await piped(stage, tmp_path, "hello\n\nagain\n", "--team", "talker", "--session", session)
    assert (code, out) == (COMPLETED, "You said hello. \nYou said again. \n")
    assert session in err
    assert [run["input"]["input_content"] for run in await stage.runs(session)] == ["hello", "again"]


async def test_a_last_line_without_an_end_is_a_turn_too(stage: Stage, tmp_path: Path) -> None:
    code, out, _ = await piped(stage, tmp_path, "hello", "--team", "talker")
    assert (code, out) == (COMPLETED, "You said hello. \n")


async def test_what_is_shown_through_a_pipe_is_plain(stage: Stage, tmp_path: Path) -> None:
    code, out, err = await piped(stage, tmp_path, "tea\n", "--team", "shop")
    assert (code, out) == (COMPLETED, "Here you are.\n")
    assert "    · remember(" in err
    assert "\x1b" not in out + err


async def test_a_model_s_control_characters_do_not_get_through_a_pipe(stage: Stage, tmp_path: Path) -> None:
    _, out, err = await piped(stage, tmp_path, "hostile\n", "--team", "talker")
    assert not set("\x1b\x07\x9b\r") & set(out + err)


async def test_the_exit_code_says_that_a_turn_failed_and_the_lines_after_it_are_taken(
    stage: Stage, tmp_path: Path
) -> None:
    code, out, err = await piped(stage, tmp_path, "fail\nget well\n", "--team", "broken")
    assert (code, out) == (FAILED, "well\n")
    assert "(executor_failed)" in err


async def test_a_paused_run_is_no_completed_one_in_a_pipe_and_takes_no_line_for_a_decision(
    stage: Stage, tmp_path: Path
) -> None:
    code, out, err = await piped(stage, tmp_path, "pay them\n/cancel\n", "--team", "till")
    assert (code, out) == (FAILED, "")
    assert 'It asks to call pay({"whom":"bob"}).' in err
    assert "nothing is being answered" in err


async def test_commands_work_in_a_pipe_after_the_turns_before_them(stage: Stage, tmp_path: Path) -> None:
    code, out, _ = await piped(stage, tmp_path, "tea\n/state\n", "--team", "shop")
    answer, _, state = out.partition("\n")
    assert (code, answer, json.loads(state)) == (COMPLETED, "Here you are.", {"seen": "tea"})


async def test_an_unknown_command_in_a_pipe_is_a_failure(stage: Stage, tmp_path: Path) -> None:
    code, out, err = await piped(stage, tmp_path, "/nonsense\n", "--team", "talker")
    assert (code, out) == (FAILED, "")
    assert "There is no command /nonsense" in err


async def test_ctrl_c_in_a_pipe_cancels_the_turn_and_takes_no_further_line(
    stage: Stage, tmp_path: Path, session: str, gate: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "chat", "--team", "talker", "--session", session),
        env=surroundings(stage.settings, tmp_path),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(f"hold {gate}\nnever\n".encode())
    await stage.gates.reached(gate)
    process.send_signal(2)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert process.returncode == INTERRUPTED, err.decode()
    assert [run["status"] for run in await stage.runs(session)] == ["CANCELLED"]


async def test_it_ends_quietly_when_nobody_reads_its_answers_any_more(stage: Stage, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f"yes hello | '{sys.executable}' -m worker chat --team talker | head -n 1"),
        env=surroundings(stage.settings, tmp_path),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert out == b"You said hello. \n"
    session, *more = err.decode().splitlines()
    assert session.startswith("team talker · session ")
    assert all("the request goes on" in line for line in more)


async def test_a_dumb_terminal_is_spoken_to_plainly(stage: Stage, tmp_path: Path) -> None:
    async with Terminal(
        "chat", "--team", "talker", environment=surroundings(stage.settings, tmp_path), term="dumb"
    ) as terminal:
        await terminal.has("session")
        terminal.type("hello\n")
        await terminal.has_row("You said hello.")
        terminal.type(CTRL_D)
        assert await terminal.exited() == COMPLETED
        assert "\x1b" not in terminal.written.decode()


@pytest.mark.parametrize("options", [(), ("--team", "a\tb"), ("--team", "x", "--agent", "y")], ids=repr)
async def test_a_mistake_is_one_line(stage: Stage, tmp_path: Path, options: tuple[str, ...]) -> None:
    code, out, err = await piped(stage, tmp_path, "hello\n", *options)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)


async def test_odd_ids_are_taken_and_shown_as_they_are(stage: Stage, tmp_path: Path) -> None:
    code, _, err = await piped(stage, tmp_path, "hello\n", "--team", "talker", "--session", ODD, "--user", ODD)
    assert code == COMPLETED
    assert ODD in err
