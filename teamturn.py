"""teamturn: asynchronous workers for LLM teams. These are its public names, and nothing else.

    from teamturn import Team, Workflow, Turn, executor, RunClient

They are loaded when they are first used, so that a producer which needs only RunClient imports no model libraries, and
who has no use for AgnoExecutor needs no Agno.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.replies import RunReply
    from schemas.requests import RunRequest
    from worker.agno.executor import AgnoExecutor
    from worker.client import RunClient
    from worker.errors import (
        BrokerUnavailable,
        ClientClosed,
        ClientError,
        ClientTimedOut,
        NoRoute,
        PublishNacked,
        ReplyUnreadable,
        RequestTooLarge,
        StartupError,
        UnknownRun,
    )
    from worker.executors.function import executor
    from worker.executors.turn import Turn
    from worker.team.single_agent import SingleAgent
    from worker.team.summary import SessionSummary
    from worker.team.team import Team
    from worker.team.workflow import Step, Workflow

__all__ = [
    "AgnoExecutor",
    "BrokerUnavailable",
    "ClientClosed",
    "ClientError",
    "ClientTimedOut",
    "NoRoute",
    "PublishNacked",
    "ReplyUnreadable",
    "RequestTooLarge",
    "RunClient",
    "RunReply",
    "RunRequest",
    "SessionSummary",
    "SingleAgent",
    "StartupError",
    "Step",
    "Team",
    "Turn",
    "UnknownRun",
    "Workflow",
    "executor",
]

_HOMES = {
    "AgnoExecutor": "worker.agno.executor",
    "BrokerUnavailable": "worker.errors",
    "ClientClosed": "worker.errors",
    "ClientError": "worker.errors",
    "ClientTimedOut": "worker.errors",
    "NoRoute": "worker.errors",
    "PublishNacked": "worker.errors",
    "ReplyUnreadable": "worker.errors",
    "RequestTooLarge": "worker.errors",
    "RunClient": "worker.client",
    "RunReply": "schemas.replies",
    "RunRequest": "schemas.requests",
    "SessionSummary": "worker.team.summary",
    "SingleAgent": "worker.team.single_agent",
    "StartupError": "worker.errors",
    "Step": "worker.team.workflow",
    "Team": "worker.team.team",
    "Turn": "worker.executors.turn",
    "UnknownRun": "worker.errors",
    "Workflow": "worker.team.workflow",
    "executor": "worker.executors.function",
}

for _package in ("worker", "schemas", "sql"):
    _spec = find_spec(_package)
    _origin = Path(_spec.origin).parent.parent if _spec and _spec.origin else None
    if _origin != Path(__file__).parent:
        _other = _spec.origin if _spec else "missing"
        print(
            f"teamturn: another module named {_package!r} ({_other}) hides teamturn's own: rename it, or take its "
            "folder out of PYTHONPATH",
            file=sys.stderr,
        )
        raise SystemExit(2)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever of the public names is asked for
    if name not in _HOMES:
        raise AttributeError(f"module 'teamturn' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def main() -> None:
    """Run the command `teamturn`."""
    from worker.cli import main as run  # noqa: PLC0415 - the command line only where it is used

    run()
