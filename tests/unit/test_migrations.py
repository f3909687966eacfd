"""Migrations: what is released stays as it is, and what is new is survived by a running worker of the last release."""

from __future__ import annotations

import pytest

import sql
from tests.support.migration_rules import mistakes
from tests.support.releases import Release

GOOD = """-- Says what it is for.
-- compatible with: 10

create table notes (run_id varchar primary key, text bytea not null);
create index notes_by_text on notes (text);
alter table notes add check (length(text) < 10);
insert into notes select run_id, '' from receipts;
alter table agno_runs add column noted boolean, add column notes integer not null default 0;
alter table receipts add column kind varchar default 'a; b';
alter table fleet_settings
    add column phase varchar check (phase in ('gathering', 'spreading'));
create index settings_by_phase on fleet_settings (phase);
update fleet_settings set phase = null;
create or replace function count_of(things jsonb) returns bigint
language plpgsql as $$ begin drop table notes; return 1; end; $$;
create function one() returns integer language sql return 1;
comment on table notes is 'notes';
"""


def test_what_a_migration_may_hold() -> None:
    assert mistakes(GOOD, last_released=10) == []


@pytest.mark.parametrize(
    "statement",
    [
        "drop table turn_steps",
        "drop function claim_turns(jsonb)",
        "drop index agno_runs_in_order",
        "truncate receipts",
        "lock table receipts",
        "vacuum receipts",
        "alter table receipts rename to answers",
        "alter table receipts rename column reply to answer",
        "alter table receipts drop column reply",
        "alter table receipts alter column reply type text",
        "alter table receipts alter column user_id set not null",
        "alter table receipts add column kind varchar not null",
        "alter table receipts add column kind varchar check (kind <> 'x')",
        "alter table receipts add column kind varchar references kinds",
        "alter table receipts add column kind varchar unique",
        "alter table receipts add column made timestamptz default clock_timestamp()",
        "alter table receipts add column number bigserial primary key",
        "alter table receipts add column number integer generated always as identity",
        "alter table receipts add column kind varchar, drop column reply",
        "alter table receipts add constraint filled check (reply is not null)",
        "alter table fleet_settings add column phase varchar not null",
        "alter function claim_turns rename to claim",
        "create index receipts_by_user on receipts (user_id)",
        "create index concurrently receipts_by_user on receipts (user_id)",
        "update agno_sessions set session_data = null",
        "delete from agno_runs",
        "insert into receipts select * from receipts",
        "do $$ begin drop table receipts; end $$",
        "create trigger told before update on receipts for each row execute function one()",
    ],
)
def test_what_a_migration_may_not_hold(statement: str) -> None:
    assert mistakes(f"-- Good.\n-- compatible with: 10\n{statement};", last_released=10)


INDEX = "drop index concurrently if exists by_user;\ncreate index concurrently by_user on receipts (user_id);\n"


def test_an_index_on_a_large_table_is_built_in_no_transaction() -> None:
    assert mistakes(f"-- compatible with: 10\n-- in no transaction\n{INDEX}", last_released=10) == []


@pytest.mark.parametrize(
    "statements",
    [
        "create index concurrently by_user on receipts (user_id);",
        "create index by_user on receipts (user_id);",
        INDEX + "create index concurrently by_id on receipts (run_id);",
        INDEX.replace("exists by_user", "exists by_id"),
        INDEX + "drop index concurrently if exists by_id;\nupdate receipts set reply = '';",
    ],
)
def test_nothing_else_is_done_in_no_transaction(statements: str) -> None:
    assert mistakes(f"-- compatible with: 10\n-- in no transaction\n{statements}", last_released=10)


@pytest.mark.parametrize("line", ["", "-- compatible with: 11", "-- compatible with: the last"])
def test_a_migration_says_that_it_is_compatible_with_the_last_release(line: str) -> None:
    (mistake,) = mistakes(f"-- Good.\n{line}\ncreate table notes ();", last_released=10)
    assert "-- compatible with: 10" in mistake


def test_migrations_that_are_released_stay_as_they_are(last_release: Release) -> None:
    released = last_release.migrations()
    here = {f"{one.version:04d}_{one.name}.sql": one.text for one in sql.MIGRATIONS}
    assert len(released) >= 10
    assert {name: here.get(name) for name in released} == released


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [one.version for one in sql.MIGRATIONS] == list(range(1, len(sql.MIGRATIONS) + 1))


def test_new_migrations_are_survived_by_a_running_worker_of_the_last_release(last_release: Release) -> None:
    last_released = len(last_release.migrations())
    new = [one for one in sql.MIGRATIONS if one.version > last_released]
    wrong = {one.name: mistakes(one.text, last_released=last_released) for one in new}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_what_a_migration_is_compatible_with_is_what_its_line_says() -> None:
    assert sql.Migration(11, "good", GOOD).compatible_with == 10
    assert sql.Migration(11, "silent", "create table notes ();").compatible_with is None
