"""What a paused run waits for, as questions to whoever talks; and their answers, as decisions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

from schemas.replies import Approval, RunReply
from schemas.requests import Decision, RunRequest
from worker.cli.terminal import one_line
from worker.executors.turn import text_of

_YES: Final = re.compile(r"y|yes", re.IGNORECASE)
_NO: Final = re.compile(r"(?:n|no)(?:[ ,]\s*(?P<why>.*))?", re.IGNORECASE | re.DOTALL)
_ADDRESS: Final = {"session_id", "team_id", "agent_id", "workflow_id", "user_id"}


def decisions_of(approved: Sequence[str], denied: Sequence[str]) -> list[Decision]:
    """Return what the options --approve and --deny say: calls by their ids, denied ones with `=why` if one likes."""
    made = [Decision(tool_call_id=call, approved=True) for call in approved]
    for one in denied:
        call, _, why = one.partition("=")
        made.append(Decision(tool_call_id=call, approved=False, message=why or None))
    return made


def question_of(approval: Approval) -> str:
    """Return what is asked: all of it, since somebody is to answer for it."""
    who = "It" if approval.member_id is None else one_line(approval.member_id)
    about = "" if not approval.metadata else f" {one_line(text_of(approval.metadata))}"
    return f"{who} asks to call {one_line(approval.tool)}({one_line(text_of(approval.arguments))}).{about}"


def decision_on(approval: Approval, said: str) -> Decision | None:
    """Return the decision: `y` or `yes`, `n` or `no` and maybe why; None for anything else."""
    said = said.strip()
    if _YES.fullmatch(said):
        return Decision(tool_call_id=approval.tool_call_id, approved=True)
    if denied := _NO.fullmatch(said):
        return Decision(tool_call_id=approval.tool_call_id, approved=False, message=denied["why"] or None)
    return None


def continuing(request: RunRequest, reply: RunReply, decisions: Sequence[Decision]) -> RunRequest:
    """Return the request that goes on with a paused run."""
    fields = request.model_dump(include=_ADDRESS, exclude_none=True)
    paused = reply.answered_by or reply.run_id
    return RunRequest.model_validate(
        {**fields, "run_id": str(uuid.uuid4()), "continues": paused, "decisions": decisions}
    )
