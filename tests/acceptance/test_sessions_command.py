"""`teamturn sessions`, as its users type it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from tests.acceptance.stage import QUICKER, Stage, database_of_its_own, staged
from tests.support import commands
from tests.support.commands import COMPLETED, FAILED, MISTAKE, ODD, Ended, too_wide
from tests.support.waiting import eventually
from tests.support.workers import ROOT, environment_of
from worker.sandbox import Sandbox
from worker.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One worker, and the sessions of all tests of this module."""
    async with staged(sandbox, template, tmp_path_factory.mktemp("gates")) as stage:
        yield stage


@pytest.fixture
def session() -> str:
    """A session id of the test's own."""
    return f"session-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def user() -> str:
    """A user id of the test's own."""
    return f"user-{uuid.uuid4().hex[:12]}"


async def teamturn(settings: Settings, *command: str, **environment: str) -> Ended:
    return await commands.teamturn(settings, *command, **QUICKER, **environment)


async def sessions(stage: Stage, *command: str) -> Ended:
    return await teamturn(stage.settings, "sessions", *command)


async def listed(stage: Stage, *options: str) -> list[str]:
    """The ids that `sessions list` has, in its order."""
    code, out, err = await sessions(stage, "list", "--json", *options)
    assert code == COMPLETED, err
    return [json.loads(line)["session_id"] for line in out.splitlines()]


async def answered(stage: Stage, session: str, *texts: str, **fields: Any) -> None:
    for text in texts:
        await stage.broker.reply(await stage.broker.ask(session, text, **fields))


async def made_the_latest(stage: Stage, session: str) -> None:
    """Make all other sessions older: times are whole seconds, and the tests don't wait for the next one."""
    await stage.database.execute(
        "update ai.agno_sessions set updated_at = updated_at - 10 where session_id <> $1", session
    )


@pytest.mark.parametrize("name", [ODD, "0b8d5b9c-6f26-4013-9bbc-9b5090d821e6"], ids=["markup and unicode", "uuid"])
async def test_list_shows_a_session_on_a_line_of_80_columns(stage: Stage, name: str) -> None:
    await answered(stage, name, "hello", user_id="u1")
    await made_the_latest(stage, name)
    code, out, err = await teamturn(stage.settings, "sessions", "list", "--limit", "1")
    assert (code, err) == (0, "")
    assert too_wide(out) == []
    _, line = out.splitlines()
    assert line.startswith(f"{name} ")
    assert "echo" in line
    assert " u1 " in line


async def test_list_begins_with_the_latest_activity(stage: Stage, session: str) -> None:
    await answered(stage, "zzz", "hello")
    await answered(stage, session, "hello")
    await made_the_latest(stage, session)
    _, out, _ = await teamturn(stage.settings, "sessions", "list", "--json")
    first, *_ = out.splitlines()
    assert json.loads(first)["session_id"] == session


async def test_list_json_is_a_session_a_line(stage: Stage, session: str) -> None:
    await answered(stage, session, "one", "two", user_id="u1")
    code, out, _ = await teamturn(stage.settings, "sessions", "list", "--json", "--limit", "1000")
    (listed,) = [one for one in map(json.loads, out.splitlines()) if one["session_id"] == session]
    assert code == 0
    assert (listed["session_type"], listed["target_id"], listed["user_id"], listed["runs"]) == ("team", "echo", "u1", 2)


async def test_list_of_none_says_so(sandbox: Sandbox, template: str, stage: Stage) -> None:
    async with database_of_its_own(sandbox, template) as empty:
        code, out, _ = await teamturn(stage.settings, "sessions", "list", TEAMTURN_POSTGRES_URL=empty)
    assert (code, out) == (0, "no sessions yet\n")


async def test_show_tells_what_was_said_in_80_columns(stage: Stage) -> None:
    name = f"{ODD} shown"
    question = f"{ODD}? " + "a long question " * 20
    await answered(stage, name, question, "and now?", user_id="u1")
    code, out, err = await teamturn(stage.settings, "sessions", "show", name)
    assert (code, err) == (0, "")
    assert too_wide(out) == []
    words = " ".join(out.split())
    for said in (name, "team echo", "u1", "COMPLETED", question.strip(), "and now?"):
        assert said in words


async def test_show_sends_nothing_to_the_terminal_but_text(stage: Stage, session: str) -> None:
    await answered(stage, session, "clear \x1b[2J the \x9b2J screen \x07")
    _, out, _ = await teamturn(stage.settings, "sessions", "show", session)
    assert [character for character in out if character in "\x1b\x9b\x07"] == []


@pytest.mark.parametrize("command", [("show", "--json"), ("export",)], ids=" ".join)
async def test_json_sends_nothing_to_the_terminal_but_text_and_says_the_same(
    stage: Stage, session: str, command: tuple[str, ...]
) -> None:
    hostile = "clear \x1b[2J the \x9b2J screen \x07 \x7f"
    await answered(stage, session, hostile)
    _, out, _ = await sessions(stage, command[0], session, *command[1:])
    assert [character for character in out if character in "\x1b\x9b\x07\x7f"] == []
    assert json.loads(out)["runs"][0]["content"] == hostile


async def test_show_json_has_the_fifteen_columns_in_order(stage: Stage, session: str) -> None:
    await answered(stage, session, "one", "two")
    code, out, _ = await teamturn(stage.settings, "sessions", "show", session, "--json")
    row = await stage.database.fetchrow("select * from ai.sessions where session_id = $1", session)
    assert row is not None
    shown = json.loads(out)
    assert code == 0
    assert list(shown) == list(row.keys())
    assert shown["runs"] == json.loads(row["runs"])


async def test_show_of_an_unknown_session_is_one_line_that_names_it(stage: Stage) -> None:
    code, out, err = await teamturn(stage.settings, "sessions", "show", "[bold]nobody[/bold]")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "[bold]nobody[/bold]" in err


# --- list ---


async def asked_by(stage: Stage, user: str, **targets: str) -> None:
    """Have sessions of a user, by their ids and targets, `team echo` say."""
    for session_id, target in targets.items():
        kind, target_id = target.split()
        body = {"run_id": f"{user}-{session_id}", "session_id": f"{user}-{session_id}", "user_id": user, "input": "hi"}
        await stage.broker.publish(body | {f"{kind}_id": target_id})
        await stage.broker.reply(f"{user}-{session_id}")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), {"a", "b", "c"}),
        (("--team", "echo"), {"a"}),
        (("--agent", "clerk"), {"b"}),
        (("--workflow", "pipeline"), {"c"}),
        (("--type", "agent"), {"b"}),
        (("--type", "team", "--team", "worked"), set()),
        (("--since", "1h"), {"a", "b", "c"}),
        (("--since", "2100-01-01"), set()),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, tuple) else "",
)
async def test_list_chooses_by_its_options(stage: Stage, user: str, options: tuple[str, ...], found: set[str]) -> None:
    await asked_by(stage, user, a="team echo", b="agent clerk", c="workflow pipeline")
    assert set(await listed(stage, "--user", user, *options)) == {f"{user}-{one}" for one in found}


async def test_list_finds_names_and_ids_by_a_part_of_them(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="team echo")
    assert (await sessions(stage, "rename", f"{user}-a", f"Groceries of {user}"))[0] == COMPLETED
    assert await listed(stage, "--name", f"groceries OF {user}") == [f"{user}-a"]
    assert await listed(stage, "--name", f"{user}-b") == [f"{user}-b"]


async def test_list_sorts_and_turns_pages(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="team echo", c="team echo")
    for number, (one, name) in enumerate((("a", "zebra"), ("b", "Ape"), ("c", ""))):
        await stage.database.execute(
            """
            update ai.agno_sessions
            set created_at = 100 + $2::bigint, updated_at = 200 - $2::bigint,
                session_data = session_data
                    || case when $3 = '' then '{}' else jsonb_build_object('session_name', $3::text) end
            where session_id = $1
            """,
            f"{user}-{one}",
            number,
            name,
        )
    orders = {order: await listed(stage, "--user", user, "--sort", order) for order in ("active", "created", "name")}
    assert {order: "".join(one[-1] for one in found) for order, found in orders.items()} == {
        "active": "abc",
        "created": "cba",
        "name": "bac",
    }
    code, out, err = await sessions(stage, "list", "--user", user, "--limit", "2")
    assert (code, len(out.splitlines()), err) == (COMPLETED, 1 + 2 + 2, "")
    assert await listed(stage, "--user", user, "--limit", "2", "--page", "2") == [f"{user}-c"]


async def test_list_in_a_terminal_says_that_there_is_another_page(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="team echo")
    primary, secondary = os.openpty()
    words = ("-m", "worker", "sessions", "list", "--user", user, "--limit", "1")
    listing = await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        env=environment_of(stage.settings, **QUICKER),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=secondary,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    _, err = await listing.communicate()
    os.close(secondary)
    os.close(primary)
    assert err.decode() == "more: --page 2\n"


async def test_list_without_a_match_says_so(stage: Stage) -> None:
    code, out, _ = await sessions(stage, "list", "--user", "nobody")
    assert (code, out) == (COMPLETED, "no such sessions\n")


@pytest.mark.parametrize(
    "options", [("--team", "a", "--agent", "b"), ("--team", "a", "--type", "agent"), ("--since", "soon")]
)
async def test_options_that_can_t_be_meant_are_a_line(stage: Stage, options: tuple[str, ...]) -> None:
    code, out, err = await sessions(stage, "list", *options)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)


# --- show ---


async def test_show_has_members_within_the_run_that_they_belong_to(stage: Stage, session: str) -> None:
    await answered(stage, session, "one", user_id="u1", metadata={"channel": "web"}, session_state={"seen": 7})
    await sessions(stage, "rename", session, "Groceries")
    await stage.database.execute(
        """
        insert into ai.agno_runs
            (run_id, session_id, run_type, parent_run_id, status, run_index, run_data, created_at)
        select session_id || name, session_id, 'agent',
               case name when 'clerk' then run_id else session_id || 'clerk' end, 'COMPLETED', -1,
               jsonb_build_object(
                   'run_id', session_id || name, 'agent_name', name, 'status', 'COMPLETED',
                   'parent_run_id', case name when 'clerk' then run_id else session_id || 'clerk' end,
                   'input', jsonb_build_object('input_content', 'task of the ' || name), 'content', name || ' answers',
                   'metrics', '{"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234}'::jsonb
               ), 1
        from ai.agno_runs, unnest(array['clerk', 'helper']) as name
        where session_id = $1
        """,
        session,
    )
    code, out, err = await sessions(stage, "show", session)
    assert (code, err) == (COMPLETED, "")
    lines = out.splitlines()
    said = lines[next(number for number, line in enumerate(lines) if line.startswith("  run ")) + 1 :]
    assert said == [
        "  > one",
        "      clerk · COMPLETED · 1,234 tokens (1,200 in, 34 out)",
        "      > task of the clerk",
        "          helper · COMPLETED · 1,234 tokens (1,200 in, 34 out)",
        "          > task of the helper",
        "          helper answers",
        "      clerk answers",
        "  one",
    ]
    assert "  Groceries" in lines
    assert '  state {"seen":7}' in lines
    assert '  metadata {"channel":"web"}' in lines


async def test_show_has_the_last_turns_and_says_that_there_are_earlier_ones(stage: Stage, session: str) -> None:
    await answered(stage, session, "one", "two", "three")
    _, some, _ = await sessions(stage, "show", session, "--last", "2")
    _, all_of_them, _ = await sessions(stage, "show", session, "--all")
    questions = [[line.strip() for line in out.splitlines() if line.startswith("  > ")] for out in (some, all_of_them)]
    assert questions == [["> two", "> three"], ["> one", "> two", "> three"]]
    assert ["earlier turns" in out for out in (some, all_of_them)] == [True, False]


async def test_show_has_the_code_of_a_failed_run(stage: Stage, session: str) -> None:
    await answered(stage, session, "RuntimeError", team_id="broken")
    _, out, _ = await sessions(stage, "show", session)
    assert "executor_failed: team.broken raised RuntimeError" in out


# --- rename ---


async def test_rename_names_a_session_and_its_next_turn_keeps_it(stage: Stage, session: str) -> None:
    await answered(stage, session, "one")
    assert await sessions(stage, "rename", session, ODD) == (COMPLETED, "", "")
    await answered(stage, session, "two")
    found = await stage.database.fetchval(
        "select session_data ->> 'session_name' from ai.sessions where session_id = $1", session
    )
    assert found == ODD


async def test_renamed_while_a_turn_runs_it_has_that_name_after_it(stage: Stage, session: str) -> None:
    stage.gates.open(session)
    await answered(stage, session, session, team_id="gated")
    run_id = await stage.broker.ask(session, f"{session}-2", team_id="gated")
    await stage.gates.reached(f"{session}-2")
    assert (await sessions(stage, "rename", session, "Groceries"))[0] == COMPLETED
    stage.gates.open(f"{session}-2")
    reply = await stage.broker.reply(run_id)
    found = await stage.database.fetchval(
        "select session_data ->> 'session_name' from ai.sessions where session_id = $1", session
    )
    assert (reply["status"], found) == ("COMPLETED", "Groceries")


@pytest.mark.parametrize("name", ["", " ", "x" * 256, "two\nlines", "\x1b[2J"])
async def test_rename_takes_no_name_that_can_t_be_shown(stage: Stage, session: str, name: str) -> None:
    await answered(stage, session, "one")
    code, out, err = await sessions(stage, "rename", session, name)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)


@pytest.mark.parametrize("command", [("rename", "nobody", "x"), ("export", "nobody")])
async def test_an_unknown_session_is_a_line_that_names_it(stage: Stage, command: tuple[str, ...]) -> None:
    code, out, err = await sessions(stage, *command)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "'nobody'" in err


# --- delete ---


async def test_delete_takes_the_session_and_its_runs_away(stage: Stage, session: str) -> None:
    await answered(stage, session, "one", "two")
    assert await sessions(stage, "delete", session, "--yes") == (COMPLETED, "", "")
    assert await stage.runs(session) == []
    assert await stage.database.fetchval("select count(*) from ai.agno_runs where session_id = $1", session) == 0


async def test_delete_asks_and_where_nobody_can_be_asked_does_nothing(stage: Stage, session: str) -> None:
    await answered(stage, session, "one")
    code, out, err = await sessions(stage, "delete", session)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "--yes" in err
    assert len(await stage.runs(session)) == 1


async def test_delete_leaves_a_session_alone_whose_turn_runs_and_waits_if_it_is_told_to(
    stage: Stage, session: str
) -> None:
    run_id = await stage.broker.ask(session, session, team_id="gated")
    await stage.gates.reached(session)
    stage.gates.open(session)
    await stage.broker.reply(run_id)
    second = await stage.broker.ask(session, f"{session}-2", team_id="gated")
    await stage.gates.reached(f"{session}-2")
    code, _, err = await sessions(stage, "delete", session, "--yes")
    assert (code, len(await stage.runs(session))) == (FAILED, 1)
    assert "a turn of it is being executed" in err
    stage.gates.open(f"{session}-2")
    code, _, err = await sessions(stage, "delete", session, "--yes", "--wait", "20")
    assert (code, err) == (COMPLETED, "")
    assert (await stage.broker.reply(second))["status"] == "COMPLETED"
    assert await stage.runs(session) == []


async def test_a_deleted_session_s_request_that_comes_again_is_answered_and_not_executed(
    stage: Stage, session: str
) -> None:
    request = {"run_id": f"{session}-run", "session_id": session, "team_id": "remembers", "input": "hi"}
    await stage.broker.publish(request)
    await stage.broker.reply(request["run_id"])
    await sessions(stage, "delete", session, "--yes")
    await stage.broker.publish(request)
    replies = stage.broker.replies
    await eventually(lambda: sum(one.message_id == request["run_id"] for one in replies) == 2)
    again = json.loads(replies[-1].body)
    assert (again["status"], again["content"], again["error"]["code"]) == ("ERROR", None, "session_deleted")
    assert await stage.runs(session) == []


async def test_with_its_receipts_deleted_a_request_that_comes_again_is_executed_again(
    stage: Stage, session: str
) -> None:
    request = {"run_id": f"{session}-run", "session_id": session, "team_id": "echo", "input": "hi"}
    await stage.broker.publish(request)
    await stage.broker.reply(request["run_id"])
    await sessions(stage, "delete", session, "--yes", "--receipts")
    await stage.broker.publish(request)
    await eventually(lambda: has_runs(stage, session, 1))


async def has_runs(stage: Stage, session: str, number: int) -> bool:
    return len(await stage.runs(session)) == number


async def test_delete_of_a_user_takes_all_of_theirs_and_says_what_is_not_reached(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="agent clerk")
    await asked_by(stage, f"{user}-2", c="team echo")
    code, out, err = await sessions(stage, "delete", "--user", user, "--yes")
    assert (code, out) == (COMPLETED, "2 sessions deleted; 2 receipts of no session emptied\n")
    for word in ("queues", "logs", "backups", "teamturn dead drop --user"):
        assert word in err
    assert await listed(stage, "--user", user) == []
    assert await listed(stage, "--user", f"{user}-2") == [f"{user}-2-c"]


@pytest.mark.parametrize("options", [(), ("s1", "--user", "ada")], ids=["nothing", "both"])
async def test_delete_must_be_told_which(stage: Stage, options: tuple[str, ...]) -> None:
    code, out, err = await sessions(stage, "delete", *options, "--yes")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)


# --- prune ---


async def test_prune_says_what_it_would_delete_and_deletes_it(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="team echo", c="team echo")
    await stage.database.execute(
        """
        with old as (
            update ai.agno_sessions set created_at = created_at - 100 * 86400, updated_at = updated_at - 100 * 86400
            where user_id = $1 and session_id <> $1 || '-c'
            returning session_id
        )
        update ai.receipts as receipt set created_at = receipt.created_at - interval '100 days'
        from old where receipt.session_id = old.session_id
        """,
        user,
    )
    chosen = ("prune", "--older-than", "90d", "--user", user)
    counts = {"sessions": 2, "runs": 2, "receipts": 2, "unfinished": 0, "held": 0}
    for options, dry_run, left in ((("--dry-run",), True, "abc"), (("--yes",), False, "c")):
        code, out, err = await sessions(stage, *chosen, *options, "--json")
        told = json.loads(out)
        assert (code, err, told.pop("bytes") > 0, told) == (COMPLETED, "", True, counts | {"dry_run": dry_run})
        assert set(await listed(stage, "--user", user)) == {f"{user}-{one}" for one in left}
    code, out, _ = await sessions(stage, *chosen, "--yes")
    assert (code, out) == (COMPLETED, "0 sessions with 0 runs, 0 receipts: 0 B deleted\n")


@pytest.mark.parametrize("command", [("prune", "--older-than", "90d"), ("delete", "--user", "nobody")])
async def test_what_postgres_refuses_is_a_line(stage: Stage, command: tuple[str, ...]) -> None:
    url = f"{stage.settings.postgres_url.get_secret_value()}?default_transaction_read_only=on"
    settings = stage.settings.model_copy(update={"postgres_url": SecretStr(url)})
    code, out, err = await teamturn(settings, "sessions", *command, "--yes")
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert "read-only transaction" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--older-than", "23h", "--yes"), "a day at least"),
        (("--older-than", "yesterday", "--yes"), "no span of time"),
        (("--older-than", "90d", "--team", "a", "--agent", "b", "--yes"), "one target"),
        (("--older-than", "90d"), "--yes"),
    ],
    ids=["too young", "no span", "two targets", "nobody to ask"],
)
async def test_prune_that_can_t_be_meant_is_a_line(stage: Stage, options: tuple[str, ...], says: str) -> None:
    code, out, err = await sessions(stage, "prune", *options)
    assert (code, out, len(err.splitlines())) == (MISTAKE, "", 1)
    assert says in err


# --- export ---


async def test_export_is_a_session_a_line_with_all_of_its_fields(stage: Stage, user: str) -> None:
    await asked_by(stage, user, a="team echo", b="agent clerk")
    code, out, err = await sessions(stage, "export", "--user", user)
    assert (code, err) == (COMPLETED, "")
    exported = {one["session_id"]: one for one in map(json.loads, out.splitlines())}
    assert set(exported) == {f"{user}-a", f"{user}-b"}
    for session_id, found in exported.items():
        _, shown, _ = await sessions(stage, "show", session_id, "--json")
        assert found == json.loads(shown)
        assert [run["run_id"] for run in found["runs"]] == [session_id]


async def test_export_writes_a_file_and_says_how_many(stage: Stage, user: str, tmp_path: Path) -> None:
    await asked_by(stage, user, a="team echo")
    file = tmp_path / "sessions.jsonl"
    code, out, err = await sessions(stage, "export", f"{user}-a", "-o", str(file))
    assert (code, out) == (COMPLETED, "")
    assert "1 session" in err
    assert [json.loads(line)["user_id"] for line in file.read_text().splitlines()] == [user]


async def test_export_to_where_nothing_can_be_written_is_a_line(stage: Stage, tmp_path: Path) -> None:
    code, _, err = await sessions(stage, "export", "-o", str(tmp_path / "missing" / "sessions.jsonl"))
    assert (code, len(err.splitlines())) == (MISTAKE, 1)


async def test_export_that_fails_leaves_the_file_that_was_there(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "sessions.jsonl"
    file.write_text("precious")
    code, _, err = await sessions(stage, "export", "nobody", "-o", str(file))
    assert (code, len(err.splitlines())) == (MISTAKE, 1)
    assert file.read_text() == "precious"
    assert not file.with_name("sessions.jsonl.unfinished").exists()


# --- what other programs wrote ---


@pytest.mark.parametrize(
    "odd",
    [
        "session_data = '\"text\"'",
        *(
            pytest.param(odd, marks=pytest.mark.slow)
            for odd in ("metadata = '[]'", "summary = '\"text\"'", "session_type = 'TEAM'", "session_data = null")
        ),
    ],
)
async def test_whatever_is_in_a_session_it_can_be_seen_exported_and_deleted(
    stage: Stage, session: str, user: str, odd: str
) -> None:
    await answered(stage, session, "one", user_id=user)
    await stage.database.execute(f"update ai.agno_sessions set {odd} where session_id = '{session}'")  # noqa: S608 - ours
    for command in (("list", "--user", user), ("show", session), ("export", session), ("delete", session, "--yes")):
        code, _, err = await sessions(stage, *command)
        assert (code, err) == (COMPLETED, ""), command
    assert await stage.runs(session) == []
