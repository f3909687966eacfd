"""A producer's import: quick, and nothing that only workers need."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.workers import ROOT

NOT_FOR_PRODUCERS = {
    *("pydantic_ai", "agno", "openai", "anthropic", "httpx", "mcp"),  # models
    *("asyncpg", "sql", "prometheus_client", "structlog", "typer", "rich", "pydantic_settings"),
}
MOST_MODULES = 500
"""354 on Python 3.11, most of them the standard library's and pydantic's; with a Team there are 890."""

PROGRAM = """
import json, sys
from teamturn import ClientError, NoRoute, RunClient, RunReply, RunRequest
json.dump(sorted(sys.modules), sys.stdout)
"""


def test_run_client_imports_no_model_library_and_little_else() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    modules = json.loads(ended.stdout)
    assert not NOT_FOR_PRODUCERS & {name.partition(".")[0] for name in modules}
    assert not [name for name in modules if name.startswith(("worker.sessions", "worker.team", "worker.executors"))]
    assert len(modules) < MOST_MODULES
