"""Every SQL statement that the program runs: one file each, read at import into typed constants.

The tables' names are unqualified: each connection sets its search_path to TEAMTURN_DB_SCHEMA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


def _read(name: str) -> str:
    return files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Migration:
    """One step of the schema: `migrations/<version>_<name>.sql`."""

    version: int
    name: str
    text: str

    @property
    def compatible_with(self) -> int | None:
        """The oldest version whose programs work on a schema that has this migration; None: only those that know it.

        A line of its own says it: `-- compatible with: 10`.
        """
        found = re.search(r"^-- compatible with: (\d+)$", self.text, re.MULTILINE)
        return None if found is None else int(found[1])

    @property
    def in_no_transaction(self) -> bool:
        """Whether it is run outside of transactions, statement by statement, and can be run again after any of them.

        A line of its own says it: `-- in no transaction`. So an index is built beside those who write.
        """
        return re.search(r"^-- in no transaction$", self.text, re.MULTILINE) is not None

    @property
    def statements(self) -> list[str]:
        """Its statements, where each ends a line."""
        return [one.strip() for one in self.text.split(";\n") if one.strip()]


def _read_migrations() -> tuple[Migration, ...]:
    found = []
    for file in files(__name__).joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            version, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(version=int(version), name=name, text=file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


ABANDON_REPARTITION: Final = _read("abandon_repartition")
APPLIED_COMPATIBLE_MIGRATIONS: Final = _read("applied_compatible_migrations")
APPLIED_MIGRATIONS: Final = _read("applied_migrations")
BEGIN_ATTEMPTS: Final = _read("begin_attempts")
BEGIN_REPARTITION: Final = _read("begin_repartition")
BEGIN_SPREADING: Final = _read("begin_spreading")
CANCELLED_RUNS: Final = _read("cancelled_runs")
CANCEL_RUNS: Final = _read("cancel_runs")
CLAIM_TURNS: Final = _read("claim_turns")
COALESCE_RUNS: Final = _read("coalesce_runs")
COMMIT_TURNS: Final = _read("commit_turns")
CONNECTION_ENCRYPTION: Final = _read("connection_encryption")
CONNECTION_READINGS: Final = _read("connection_readings")
CONTINUE_RUNS: Final = _read("continue_runs")
COUNT_ATTEMPTS: Final = _read("count_attempts")
COUNT_ORPHAN_STEPS: Final = _read("count_orphan_steps")
COUNT_PRUNABLE: Final = _read("count_prunable")
CREATE_MIGRATIONS_TABLE: Final = _read("create_migrations_table")
DELETE_CANCELLATIONS: Final = _read("delete_cancellations")
DELETE_RECEIPTS: Final = _read("delete_receipts")
DELETE_SESSIONS: Final = _read("delete_sessions")
EMPTY_RECEIPTS: Final = _read("empty_receipts")
FIND_SCHEMA: Final = _read("find_schema")
FINISH_REPARTITION: Final = _read("finish_repartition")
HAS_TRIAL_LOCK: Final = _read("has_trial_lock")
HELD_SESSIONS: Final = _read("held_sessions")
JOIN_FLEET: Final = _read("join_fleet")
LEAVE_FLEET: Final = _read("leave_fleet")
LIMIT_MIGRATION_WAITS: Final = _read("limit_migration_waits")
LIST_FLEET: Final = _read("list_fleet")
LIST_SESSIONS: Final = _read("list_sessions")
LOCK_MIGRATIONS: Final = _read("lock_migrations")
LOCK_SESSION: Final = _read("lock_session")
LOCK_SESSIONS: Final = _read("lock_sessions")
LOCK_TABLE: Final = _read("lock_table")
PING: Final = _read("ping")
PRUNABLE_SESSIONS: Final = _read("prunable_sessions")
PRUNE_JOURNAL: Final = _read("prune_journal")
PRUNE_RECEIPTS: Final = _read("prune_receipts")
PRUNE_SESSIONS: Final = _read("prune_sessions")
READ_CLOCK: Final = _read("read_clock")
READ_FLEET: Final = _read("read_fleet")
READ_FLEET_GAUGES: Final = _read("read_fleet_gauges")
READ_FLEET_SETTINGS: Final = _read("read_fleet_settings")
READ_PAUSES: Final = _read("read_pauses")
READ_WHOLE_RUNS: Final = _read("read_whole_runs")
RECEIPTS_OF_SESSION: Final = _read("receipts_of_session")
RECEIPTS_OF_USER: Final = _read("receipts_of_user")
RECORD_ASSIGNMENT: Final = _read("record_assignment")
RECORD_FLEET_SETTINGS: Final = _read("record_fleet_settings")
RECORD_MIGRATION: Final = _read("record_migration")
RECORD_STEPS: Final = _read("record_steps")
RELEASE_TRIAL_LOCK: Final = _read("release_trial_lock")
RENAME_SESSION: Final = _read("rename_session")
REOPEN_RUN: Final = _read("reopen_run")
RUNS_TO_SUMMARIZE: Final = _read("runs_to_summarize")
SESSION_HOLDER: Final = _read("session_holder")
SESSION_RUNS: Final = _read("session_runs")
SESSION_RUNS_OF_AGNO_2: Final = _read("session_runs_of_agno_2")
SHOW_SESSION: Final = _read("show_session")
STORE_RECEIPTS: Final = _read("store_receipts")
STORE_SUMMARIES: Final = _read("store_summaries")
TAKE_REPARTITION_LOCK: Final = _read("take_repartition_lock")
TAKE_TRIAL_LOCK: Final = _read("take_trial_lock")
UNCOUNT_ATTEMPTS: Final = _read("uncount_attempts")
UNLOCK_MIGRATIONS: Final = _read("unlock_migrations")
UNLOCK_SESSIONS: Final = _read("unlock_sessions")

MIGRATIONS: Final = _read_migrations()
