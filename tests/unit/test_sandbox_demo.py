"""The demo's judgement, and what it prints."""

from __future__ import annotations

import io
from contextlib import nullcontext

import pytest
from rich.console import Console

from schemas.ids import SessionType
from schemas.replies import MemberResponse, RunReply, RunStatus
from worker.sandbox.conversation import QUESTIONS, WrongAnswerError, _field, _json, check_answer, check_members
from worker.sandbox.demo import main


def _reply(content: str, status: RunStatus = RunStatus.COMPLETED) -> RunReply:
    return RunReply(
        run_id="r",
        session_id="s",
        session_type=SessionType.TEAM,
        status=status,
        content=content,
        created_at=0,
        completed_at=0,
    )


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (0, "The capital of France is Paris."),
        (1, "What is the capital of France?"),
        (1, "what is the capital of france?"),
    ],
)
def test_a_right_answer_passes(number: int, answer: str) -> None:
    check_answer(*QUESTIONS[number], _reply(answer))


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (_reply("It is Lyon."), "should hold 'Paris', but is 'It is Lyon.'"),
        (_reply("Paris", RunStatus.ERROR), "ended as ERROR"),
    ],
)
def test_a_wrong_answer_is_a_plain_sentence(reply: RunReply, sentence: str) -> None:
    with pytest.raises(WrongAnswerError, match=sentence):
        check_answer(*QUESTIONS[0], reply)


@pytest.mark.parametrize(
    ("answers", "right"),
    [(["Rome.", "Rome."], True), (["Rome."], False), (["Rome.", ""], False), ([], False)],
)
def test_a_panel_is_right_if_both_members_have_answered(answers: list[str], *, right: bool) -> None:
    reply = _reply("Rome.")
    reply.member_responses = [
        MemberResponse(member_id="m", content=answer, status=RunStatus.COMPLETED) for answer in answers
    ]
    with nullcontext() if right else pytest.raises(WrongAnswerError, match="of the panel's 2 members"):
        check_members(reply)


def _printed(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_long_value_is_wrapped_and_nothing_of_it_is_lost() -> None:
    printed = _printed(_json(f'{{"content": "{"x" * 300}"}}'))
    assert printed.count("x") == 300
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (7, "7"), ("[1]", "[\n  1\n]"), ("[bold]x", "[bold]x")])
def test_a_column_is_shown_as_what_it_is(value: object, shown: str) -> None:
    assert [line.rstrip() for line in _printed(_field(value)).splitlines()] == shown.splitlines()


def test_help_fits_into_eighty_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("--keep" in line for line in lines)
