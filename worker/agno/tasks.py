"""The tasks that a leader in Agno's mode `tasks` makes: their ids are the same in every attempt of a turn.

Agno makes up the id of a task, and tells it to the leader: what a later attempt asked behind the first task would be
something else than what was recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from agno.team.task import Task, TaskList

_ID_CHARACTERS: Final = 8
"""As many as Agno's have: the model repeats them."""


def makes_task(function: Any) -> bool:
    """Whether a function is Agno's tool that makes a task."""
    if function.entrypoint is None or function.name != "create_task":
        return False
    return getattr(inspect.unwrap(function.entrypoint), "__module__", None) == "agno.team._task_tools"


def name_task(call: Any, digest: bytes) -> None:
    """Have the task that a call of the tool makes, when Agno goes on with it, named by a digest of the call."""
    tasks = inspect.getclosurevars(inspect.unwrap(call.function.entrypoint)).nonlocals.get("task_list")
    if isinstance(tasks, TaskList) and inspect.isgenerator(call.result):
        call.result = _named(call.result, tasks, digest.hex()[:_ID_CHARACTERS])


def _named(said: Iterator[Any], tasks: TaskList, task_id: str) -> Iterator[Any]:
    create_task = tasks.create_task

    def named(*unnamed: Any, **asked: Any) -> Task:
        task = create_task(*unnamed, **asked)
        task.id = task_id
        return task

    vars(tasks)["create_task"] = named
    try:
        first = list(islice(said, 1))  # which tells that it is made
    finally:
        del vars(tasks)["create_task"]
    yield from first
    yield from said
