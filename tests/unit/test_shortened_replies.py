"""Replies that are too large to be sent: what is left out, and what they say of it."""

from __future__ import annotations

import pytest

from schemas.errors import ErrorCode
from schemas.ids import SessionType
from schemas.replies import MemberResponse, RunError, RunReply, RunStatus
from worker.replies.answers import body_of, shortened

KILOBYTE = 1_000


def a_reply(*, content: int, members: int = 0, each: int = 0, error: RunError | None = None) -> RunReply:
    """A reply whose answer, and each of whose members' answers, has so many bytes."""
    return RunReply(
        run_id="r1",
        session_id="s1",
        session_type=SessionType.TEAM,
        team_id="t1",
        status=RunStatus.ERROR if error else RunStatus.COMPLETED,
        content="x" * content,
        member_responses=[
            MemberResponse(member_id=f"m{number}", content="x" * each, status=RunStatus.COMPLETED)
            for number in range(members)
        ],
        error=error,
        created_at=1,
        completed_at=2,
    )


def of(reply: RunReply) -> RunReply:
    return shortened(reply, largest_bytes=2 * KILOBYTE, schema="ai")


def test_one_that_is_not_too_large_stays_what_it_is() -> None:
    reply = a_reply(content=10, members=2, each=10)
    assert of(reply) is reply


def test_the_answer_goes_and_the_error_says_where_it_is() -> None:
    reply = of(a_reply(content=5 * KILOBYTE, members=2, each=10))
    assert (reply.status, reply.content, len(reply.member_responses)) == (RunStatus.COMPLETED, None, 2)
    assert [response.content for response in reply.member_responses] == ["x" * 10] * 2
    assert reply.error is not None
    assert (reply.error.code, reply.error.retryable) == (ErrorCode.REPLY_TOO_LARGE, False)
    assert "ai.sessions: session s1, run r1" in reply.error.message


def test_the_members_answers_go_where_that_is_not_enough() -> None:
    reply = of(a_reply(content=10, members=3, each=KILOBYTE))
    assert reply.content is None
    assert [(response.member_id, response.content) for response in reply.member_responses] == [
        ("m0", None),
        ("m1", None),
        ("m2", None),
    ]


def test_their_list_goes_at_last() -> None:
    assert of(a_reply(content=10, members=200)).member_responses == []


@pytest.mark.parametrize("members", [0, 3, 200])
def test_it_fits(members: int) -> None:
    assert len(body_of(of(a_reply(content=5 * KILOBYTE, members=members, each=KILOBYTE)))) <= 2 * KILOBYTE


def test_a_failure_stays_what_it_was() -> None:
    failure = RunError(code=ErrorCode.TURN_TIMEOUT, message="it took too long", retryable=True)
    reply = of(a_reply(content=0, members=3, each=KILOBYTE, error=failure))
    assert reply.error is not None
    assert (reply.status, reply.error.code, reply.error.retryable) == (RunStatus.ERROR, ErrorCode.TURN_TIMEOUT, True)
    assert reply.error.message.startswith("it took too long")
    assert "ai.sessions: session s1, run r1" in reply.error.message


def test_one_that_was_shortened_before_says_so_once() -> None:
    once = of(a_reply(content=5 * KILOBYTE, members=10, each=10))
    again = shortened(once, largest_bytes=KILOBYTE, schema="ai")
    assert again.error == once.error
    assert again.member_responses == [] or all(response.content is None for response in again.member_responses)
