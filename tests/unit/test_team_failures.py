"""What a team's models do wrong, as the code that the reply carries."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Tool
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.usage import RequestUsage, UsageLimits
from structlog.testing import capture_logs

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.unit.examples import NOW, a_turn
from tests.unit.models import Recorded, failing, member, never_answering, responses, says, tasks, text
from worker.errors import TurnFailed
from worker.executors.attempt import attempt
from worker.executors.turn import Turn
from worker.team.failures import described
from worker.team.team import Team

_team = partial(Team, model_retries=0)
_SECRET = "sk-hunter2hunter2"
_BODY = {"error": {"message": f"Incorrect API key provided: {_SECRET}"}}


async def _failure(made: Team, turn: Turn | None = None, *, seconds: float = 30) -> TurnFailed:
    outcome = await attempt(made, turn or a_turn(), limit=timedelta(seconds=seconds), now=NOW, deadline=None)
    assert outcome.status is RunStatus.ERROR
    assert outcome.session_state is None
    assert outcome.error is not None
    assert _SECRET not in outcome.error.message
    return outcome.error


_HTTP = pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *[(status, False) for status in (400, 401, 403, 404, 422)],
        *[(status, True) for status in (408, 429, 500, 502, 503, 529)],
    ],
)


@_HTTP
async def test_a_provider_s_error_is_a_model_error_that_says_the_status_and_whether_to_try_again(
    status: int, *, retryable: bool
) -> None:
    error = await _failure(_team("t", failing(ModelHTTPError(status, "told", _BODY))))
    assert error.code is ErrorCode.MODEL_ERROR
    assert error.is_retryable is retryable
    assert str(status) in error.message


@_HTTP
async def test_so_is_the_error_of_a_member_s_provider(status: int, *, retryable: bool) -> None:
    broken = member("broken", failing(ModelHTTPError(status, "told", _BODY)))
    turn = a_turn()
    error = await _failure(_team("t", responses(tasks(("broken", "x"))).model, members=[broken]), turn)
    assert (error.code, error.is_retryable) == (ErrorCode.MODEL_ERROR, retryable)
    assert [run.status for run in turn.member_runs] == [RunStatus.ERROR]


async def test_a_provider_that_does_not_answer_is_a_model_error_worth_another_try() -> None:
    error = await _failure(_team("t", failing(ModelAPIError("told", f"Connection error to {_SECRET}"))))
    assert (error.code, error.is_retryable) == (ErrorCode.MODEL_ERROR, True)


@pytest.mark.parametrize(("status", "retryable"), [(503, True), (401, False)])
async def test_models_that_stand_in_for_each_other_and_all_fail_are_a_model_error(
    status: int, *, retryable: bool
) -> None:
    model = FallbackModel(failing(ModelHTTPError(status, "a", _BODY)), failing(ModelHTTPError(status, "b", _BODY)))
    error = await _failure(_team("t", model))
    assert (error.code, error.is_retryable) == (ErrorCode.MODEL_ERROR, retryable)


async def test_models_that_stand_in_for_each_other_answer_if_one_does() -> None:
    model = FallbackModel(failing(ModelHTTPError(503, "a", _BODY)), says("Paris"))
    assert await _team("t", model).run(a_turn()) == "Paris"


@pytest.mark.parametrize(
    ("raised", "retryable"),
    [(UnexpectedModelBehavior("odd", _SECRET), True), (TypeError(_SECRET), True), (RuntimeError(_SECRET), False)],
    ids=repr,
)
async def test_an_answer_that_is_none_is_the_model_s_error_and_not_the_team_s(
    raised: Exception, *, retryable: bool
) -> None:
    error = await _failure(_team("t", failing(raised)))
    assert (error.code, error.is_retryable) == (ErrorCode.MODEL_ERROR, retryable)


@pytest.mark.parametrize(
    "call",
    [
        ToolCallPart("delegate_task", {"member_id": "nobody", "task": "x"}),
        ToolCallPart("delegate_task", {"member": "finder"}),
        ToolCallPart("delegate_task", "{not json"),
        ToolCallPart("no_such_tool", {}),
    ],
    ids=["unknown member", "wrong arguments", "no JSON", "unknown tool"],
)
async def test_a_leader_that_keeps_calling_wrongly_is_invalid_output(call: ToolCallPart) -> None:
    leader = Recorded(lambda *_: ModelResponse(parts=[ToolCallPart(call.tool_name, call.args)]))
    error = await _failure(_team("t", leader.model, members=[member("finder")]))
    assert error.code is ErrorCode.INVALID_OUTPUT
    assert len(leader.asked) > 1, "it was given the chance to correct itself"


async def test_a_leader_that_says_nothing_is_invalid_output() -> None:
    error = await _failure(_team("t", responses(ModelResponse(parts=[])).model))
    assert error.code is ErrorCode.INVALID_OUTPUT


async def test_a_member_whose_output_never_validates_is_invalid_output() -> None:
    class City(BaseModel):
        name: str

    finder: Agent[Turn, City] = Agent(says("no JSON"), name="finder", deps_type=Turn, output_type=City)
    error = await _failure(_team("t", responses(tasks(("finder", "x"))).model, members=[finder]))
    assert error.code is ErrorCode.INVALID_OUTPUT


async def test_a_leader_that_never_stops_delegating_reaches_the_usage_limit_and_its_tokens_count() -> None:
    limit = UsageLimits().request_limit
    assert limit is not None
    turn = a_turn()
    error = await _failure(_team("t", responses(tasks(("finder", "x"))).model, members=[member("finder")]), turn)
    assert error.code is ErrorCode.USAGE_LIMIT_EXCEEDED
    assert turn.usage.model_requests == limit
    assert turn.usage.input_tokens == 10 * limit


@pytest.mark.parametrize(
    "error",
    [
        UserError("unsupported"),
        NotImplementedError("VideoUrl is not supported"),
        AssertionError(),
        ValueError("Unknown media type: audio/mid"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("fallbacks", [0, 1])
async def test_a_request_that_the_model_can_not_be_given_is_final_and_made_once(
    error: Exception, fallbacks: int
) -> None:
    made = Team("t", failing(error), fallback_models=[failing(error)] * fallbacks, model_retries=3)
    failed = await _failure(made)
    assert (failed.code, failed.is_retryable) == (ErrorCode.MODEL_ERROR, False)
    assert ("each of 2 models failed" if fallbacks else "can't be given this request") in failed.message


async def test_a_model_that_can_be_given_the_request_stands_in_for_one_that_can_not() -> None:
    made = Team("t", failing(NotImplementedError()), fallback_models=[says("seen")])
    assert await made.run(a_turn()) == "seen"


async def test_why_a_model_failed_is_logged_in_the_provider_s_words_for_it_but_not_with_its_text() -> None:
    error = {"message": f"too long: {_SECRET}", "code": "context_length_exceeded", "param": _SECRET, "type": None}
    for body in ({"error": error}, error):
        with capture_logs() as logged:
            await _failure(_team("t", failing(ModelHTTPError(400, "told", body))))
        (line,) = [entry for entry in logged if entry["event"] == "model_failed"]
        assert (line["status"], line["provider_code"]) == (400, "context_length_exceeded")
        assert line["error"] == "ModelHTTPError"
        assert _SECRET not in str(line)


def test_an_error_that_is_its_own_cause_is_described_all_the_same() -> None:
    one, other = LookupError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert described(one)["error"] == "LookupError from KeyError"


async def test_where_each_of_several_models_failed_is_logged() -> None:
    broken = failing(ModelHTTPError(500, "told", {"message": _SECRET}))
    with capture_logs() as logged:
        await _failure(_team("t", broken, fallback_models=[failing(LookupError(_SECRET))]))
    (line,) = [entry for entry in logged if entry["event"] == "model_failed"]
    assert [one["error"] for one in line["errors"]] == ["ModelHTTPError", "LookupError"]
    assert _SECRET not in str(line)


async def test_a_tool_that_raises_has_a_code_of_its_own() -> None:
    def tool() -> str:
        raise LookupError(_SECRET)

    leader = responses(ModelResponse(parts=[ToolCallPart("tool", {})]), text("done"))
    error = await _failure(_team("t", leader.model, tools=[Tool(tool)]))
    assert (error.code, _SECRET in error.message) == (ErrorCode.TOOL_FAILED, False)


async def test_a_tool_whose_result_no_model_can_be_told_has_failed() -> None:
    leader = responses(ModelResponse(parts=[ToolCallPart("tool", {})]), text("done"))
    error = await _failure(_team("t", leader.model, tools=[Tool(lambda: {"a": object()}, name="tool")]))
    assert (error.code, "'tool'" in error.message) == (ErrorCode.TOOL_FAILED, True)


@pytest.mark.parametrize("odd", ["x\ud800y", {"a": "x\ud800y"}, ["x\ud800y"]], ids=["text", "object", "list"])
async def test_what_utf_8_can_not_carry_is_replaced_in_what_tools_are_given_and_return(odd: Any) -> None:
    call = ToolCallPart("tool", {"given": odd})
    leader = responses(ModelResponse(parts=[call], usage=RequestUsage(input_tokens=1)), text("done"))
    seen: list[Any] = []

    async def tool(given: Any) -> Any:
        seen.append(given)
        return odd

    turn = a_turn()
    assert await _team("t", leader.model, tools=[tool]).run(turn) == "done"
    assert "\ud800" not in str(seen)
    assert "\ud800" not in str(turn.messages)
    assert "x\ufffdy" in str(turn.messages)


async def exits() -> str:
    await asyncio.sleep(0)
    sys.exit("tool")


def exits_in_a_thread() -> str:
    sys.exit("tool")


@pytest.mark.parametrize("tool", [exits, exits_in_a_thread])
async def test_a_tool_that_exits_ends_its_turn_alone(tool: Any) -> None:
    leader = responses(ModelResponse(parts=[ToolCallPart(tool.__name__, {}) for _ in range(2)]), text("done"))
    error = await _failure(_team("t", leader.model, tools=[tool]))
    assert (error.code, "SystemExit" in error.message) == (ErrorCode.TOOL_FAILED, True)


async def test_a_team_that_is_stopped_leaves_its_member_s_run_cancelled_and_counts_what_was_spent() -> None:
    turn = a_turn()
    made = _team("t", responses(tasks(("slow", "x"))).model, members=[member("slow", never_answering())])
    error = await _failure(made, turn, seconds=0.2)
    assert error.code is ErrorCode.TURN_TIMEOUT
    assert [(run.status, run.content) for run in turn.member_runs] == [(RunStatus.CANCELLED, None)]
    assert turn.usage.input_tokens == 10


async def test_a_member_that_fails_ends_the_turn_and_stops_the_members_beside_it() -> None:
    turn = a_turn()
    broken = member("broken", failing(ModelHTTPError(500, "told", _BODY)))
    members = [member("slow", never_answering()), broken]
    leader = responses(tasks(("slow", "x"), ("broken", "x")), text("done"))
    error = await _failure(_team("t", leader.model, members=members), turn, seconds=10)
    assert error.code is ErrorCode.MODEL_ERROR
    assert {run.name: run.status for run in turn.member_runs} == {
        "slow": RunStatus.CANCELLED,
        "broken": RunStatus.ERROR,
    }
