"""deploy/roles/rabbitmq.sh, with what stands for rabbitmqctl: what it refuses, and whom it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support.workers import ROOT

CTL = """#!/bin/sh
case "$*" in
  *list_users*) printf 'user\\ttags\\nteamturn-worker\\t[]\\n'; exit "${LISTING:-0}" ;;
  *import_definitions*) for file do :; done; cat "$file" >"$IMPORTED" ;;
esac
"""


def run(tmp_path: Path, *roles: str, **variables: str) -> tuple[int, str, dict[str, list[dict[str, str]]]]:
    """Return its exit code, what it complains of, and what it has imported."""
    ctl, imported = tmp_path / "rabbitmqctl", tmp_path / "imported"
    ctl.write_text(CTL)
    ctl.chmod(0o755)
    done = subprocess.run(
        [ROOT / "deploy" / "roles" / "rabbitmq.sh", *roles],
        env=os.environ | {"RABBITMQCTL": str(ctl), "IMPORTED": str(imported), "TMPDIR": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, json.loads(imported.read_text()) if imported.exists() else {}


def test_a_user_that_exists_keeps_its_password_and_a_new_one_gets_that_of_its_role(tmp_path: Path) -> None:
    code, _, made = run(tmp_path, "worker", "consumer", WORKER_PASSWORD="another", CONSUMER_PASSWORD='a"b\\c')
    assert (code, [user["name"] for user in made["users"]]) == (0, ["teamturn-consumer"])
    assert made["users"][0]["password"] == 'a"b\\c'
    assert [one["user"] for one in made["permissions"]] == ["teamturn-worker", "teamturn-consumer"]


def test_where_the_users_can_not_be_listed_nobody_is_given_a_password(tmp_path: Path) -> None:
    code, _, made = run(tmp_path, "worker", LISTING="69")
    assert (code, made) == (69, {})


def test_a_prefix_that_would_be_more_as_a_regular_expression_is_refused(tmp_path: Path) -> None:
    code, err, made = run(tmp_path, "worker", PREFIX="a|.*")
    assert (code, made) == (2, {})
    assert "prefix" in err
