"""What a migration may hold that a running older worker is to survive; see `mistakes`."""

from __future__ import annotations

import re
from collections.abc import Iterator

SMALL = frozenset({"fleet_settings", "fleet_assignments", "turn_attempts", "cancellations", "coalesced_runs"})
"""Tables of a row a prefix, or a row an unfinished run: what reads them whole is over at once. Others may be large."""

_NAME = r'(?:if not exists )?"?(\w+)"?'
_CONSTANT = r"(?:null|true|false|-?\d+(?:\.\d+)?|'')(?:::\w+)?"
_TYPE = (
    r"(?:varchar|text|jsonb|bytea|boolean|smallint|integer|bigint|numeric|double precision|timestamptz|date|uuid)"
    r"(?:\(\d+(?:, ?\d+)?\))?(?:\[\])?"
)
_PLAIN_COLUMN = re.compile(
    rf"add column {_NAME} {_TYPE}"
    rf"(?: not null default {_CONSTANT}| default {_CONSTANT}(?: not null)?| null)?"
)


def mistakes(text: str, *, last_released: int) -> list[str]:
    """Return a sentence for each thing in a migration by which a worker of the last release could fail, or wait.

    It may create tables, indexes on these or on small ones, and functions; replace functions and views; add columns
    that are null or have a constant; comment; and change the rows of new or small tables. It says that it is compatible
    with what the last release knows, or something older. Indexes on large tables are built by a migration of their own,
    in no transaction.
    """
    found = []
    declared = re.search(r"^-- compatible with: (\d+)$", text, re.MULTILINE)
    if declared is None or int(declared[1]) > last_released:
        found.append(f"it has no line `-- compatible with: {last_released}`, or that of an older version")
    new: set[str] = set()
    if re.search(r"^-- in no transaction$", text, re.MULTILINE):
        return found + _wrong_outside(list(_statements(text)))
    for statement in _statements(text):
        wrong = _wrong(statement, new)
        if wrong is not None:
            found.append(f"{wrong}: {statement[:80]}")
    return found


def _wrong_outside(statements: list[str]) -> list[str]:
    """Outside of transactions an index is built; what is left of one that was interrupted is dropped first."""
    for dropped, created in zip(statements[::2], statements[1::2], strict=False):
        name = re.fullmatch(r"drop index concurrently if exists (\w+)", dropped)
        if name is None or not re.match(rf"create (?:unique )?index concurrently {name[1]} on ", created):
            return [f"outside of transactions it builds no index that can be begun again: {created[:80]}"]
    return [f"a statement has nothing beside it: {statements[-1][:80]}"] if len(statements) % 2 else []


def _wrong(statement: str, new: set[str]) -> str | None:  # noqa: PLR0911 - one return a kind of statement
    if created := re.match(rf"create table {_NAME}", statement):
        new.add(created[1])
        return None
    if indexed := re.match(rf"create (?:unique )?index {_NAME} on (\w+)", statement):
        if indexed[2] in new | SMALL:
            return None
        return "it keeps writers from a table that may be large until the index is there"
    if re.match(r"create (or replace )?function |create or replace view |create view |comment on ", statement):
        return None
    if altered := re.match(r"alter table (?:if exists )?(?:only )?(\w+) (.*)", statement):
        if altered[1] in new:
            return None
        return _wrong_change(altered[2], small=altered[1] in SMALL)
    if changed := re.match(r"(?:insert into|update|delete from) (\w+)", statement):
        return None if changed[1] in new | SMALL else "it locks or rewrites rows of a table that may be large"
    return "it is no statement that a migration may hold"


def _wrong_change(clauses: str, *, small: bool) -> str | None:
    for clause in re.split(r", (?=(?:add|drop|alter|rename|set|enable|disable|attach|owner) )", clauses):
        if not clause.startswith("add column "):
            return "it changes or removes what the last release uses"
        if not small and not _PLAIN_COLUMN.fullmatch(clause):
            return "it reads or rewrites a table that may be large, or asks of old rows what they have not"
        if small and re.search(r"\bnot null\b", clause) and "default" not in clause:
            return "a worker of the last release inserts rows without it"
    return None


def _statements(text: str) -> Iterator[str]:
    """Yield the statements in lower case, a line each, without comments and with literals and bodies left empty."""
    without = re.sub(r"--[^\n]*", "", text)
    without = re.sub(r"\$(\w*)\$.*?\$\1\$", "''", without, flags=re.DOTALL)
    without = re.sub(r"'(?:[^']|'')*'", "''", without)
    for statement in without.split(";"):
        if stripped := " ".join(statement.lower().split()):
            yield stripped
