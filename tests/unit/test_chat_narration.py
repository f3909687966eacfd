"""What a chat tells of a run whose events come twice, in halves or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue
from typing_extensions import override

from schemas.errors import ErrorCode
from schemas.events import RUN_EVENT
from schemas.ids import SessionType
from schemas.replies import RunError, RunReply, RunStatus
from worker.cli.chat.narration import Narration, how_it_ended
from worker.cli.chat.screens import Screen, Style


class Page(Screen):
    """Keeps what is written on it: the answer as it comes, all else in lines of its own."""

    def __init__(self) -> None:
        self.text = ""

    @property
    @override
    def columns(self) -> int:
        return 80

    @override
    def write(self, piece: str) -> None:
        self.text += piece

    @override
    def end(self) -> None:
        self.text += "" if self.text.endswith("\n") or not self.text else "\n"

    @override
    def aside(self, text: str, *, depth: int = 0, style: Style = Style.DIM) -> None:
        self.end()
        self.text += f"{'  ' * depth}{text}\n"

    @override
    def page(self, text: str) -> None:
        raise AssertionError("nobody asked")

    @override
    def echo(self, text: str) -> None:
        raise AssertionError("nobody said anything")

    @override
    def go_on(self, status: str) -> None:
        raise AssertionError("that is the conversation's to say")


def told(*events: dict[str, Any], content: JsonValue = None, status: RunStatus = RunStatus.COMPLETED) -> str:
    """What is shown of events and the reply after them."""
    page = Page()
    narration = Narration(page)
    base = {"run_id": "r", "session_id": "s", "session_type": "team", "target_id": "t", "time": 0}
    for number, event in enumerate(events, start=1):
        narration.tell(RUN_EVENT.validate_python({**base, "number": number, "attempt": 1} | event))
    narration.finish(reply_of(status, content=content))
    return page.text


def reply_of(status: RunStatus, **fields: Any) -> RunReply:
    return RunReply(
        run_id="r",
        session_id="s",
        session_type=SessionType.TEAM,
        created_at=0,
        completed_at=0,
        status=status,
        **fields,
    )


STARTED = {"type": "run_started"}


def piece(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_delta", "text": text, **fields}


def test_an_answer_that_was_told_is_not_told_again() -> None:
    assert told(STARTED, piece("Par"), piece("is"), content="Paris") == "Paris\n"


def test_an_answer_that_no_event_told_is_in_the_reply() -> None:
    assert told(STARTED, content={"city": "Paris"}) == '{"city":"Paris"}\n'


def test_an_answer_of_which_a_piece_was_lost_is_told_whole() -> None:
    shown = told(STARTED, piece("Par"), content="Paris")
    assert shown == "Par\n· some of it was lost on the way; all of it:\nParis\n"


def test_an_answer_that_a_crash_broke_off_is_told_anew() -> None:
    again = {"type": "run_started", "attempt": 2, "resumed_behind": "step-1"}
    assert told(STARTED, piece("Pa"), again, piece("Paris"), content="Paris") == "Pa\n  · goes on, attempt 2\nParis\n"


def test_what_was_written_before_a_tool_was_called_is_no_lost_piece() -> None:
    call = {"type": "tool_call_started", "tool": "look", "call_id": "1", "arguments": {}}
    assert told(STARTED, piece("Let me see."), call, piece("Paris"), content="Paris") == (
        "Let me see.\n  · look({})\nParis\n"
    )


def test_half_an_answer_that_was_cancelled_is_not_told_twice() -> None:
    shown = told(STARTED, piece("Par"), piece("i"), content="Par", status=RunStatus.CANCELLED)
    assert shown == "Pari\nCancelled.\n"


def test_members_that_write_side_by_side_are_told_apart() -> None:
    members = [
        {"type": "member_started", "member_id": name, "member_run_id": f"{name}-run", "parent_run_id": "r"}
        for name in ("ann", "bob")
    ]
    written = [
        *(piece("I am ", member_run_id="ann-run"), piece("so ", member_run_id="bob-run")),
        *(piece("Ann.", member_run_id="ann-run"), piece("am I.", member_run_id="bob-run")),
    ]
    ends = [
        {"type": "member_finished", "member_id": name, "member_run_id": f"{name}-run", "status": status}
        for name, status in (("ann", "COMPLETED"), ("bob", "ERROR"))
    ]
    assert told(STARTED, *members, *written, *ends, piece("Both are."), content="Both are.").splitlines() == [
        *("  · ann …", "  · bob …", "  ann: I am Ann.", "  bob: so am I.", "  · bob: ERROR", "Both are."),
    ]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (RunStatus.ERROR, "It failed: no luck (model_error). It is worth asking again."),
        (RunStatus.REJECTED, "Refused: no luck (model_error)."),
        (RunStatus.CANCELLED, "Cancelled (model_error)."),
        (RunStatus.COMPLETED, "It comes without its answer: no luck (model_error)."),
    ],
)
def test_an_end_with_an_error_is_a_sentence_with_its_code(status: RunStatus, said: str) -> None:
    error = RunError(code=ErrorCode.MODEL_ERROR, message="no luck.", retryable=True)
    assert how_it_ended(reply_of(status, error=error)) == said


def test_a_run_that_completed_needs_no_sentence() -> None:
    assert how_it_ended(reply_of(RunStatus.COMPLETED)) is None
