"""The spans of a turn, beside those of operations.tracing, and what is told of how it ended.

process {queue}             one delivery, from its arrival to its stored answer
  wait                      in its session's mailbox, behind the session's earlier requests; of one that is refused at
                            once for them, until that is found out
  claim                     until the session's lock is held, and a place among the running turns
  invoke_agent {id}         one attempt of the turn; of a workflow: invoke_workflow {id}
    step {name}             a model request, a tool call or a `turn.step` that is made, its record included
  commit
  send {exchange}           the reply, until its confirm; it may end after its parent
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from opentelemetry.trace import Span

from schemas.ids import SessionType
from schemas.replies import RunReply, RunStatus
from worker.executors.attempt import Outcome
from worker.executors.turn import Executor, Turn
from worker.intake.delivery import RequestDelivery
from worker.operations import tracing


@contextmanager
def processing(received: RequestDelivery) -> Iterator[None]:
    """Open the span of a request's processing for the block, with how long it waited behind others of its session."""
    with received.delivery.processing():
        if tracing.recording():
            request = received.request
            tracing.note({"teamturn.run.id": request.run_id, "gen_ai.conversation.id": request.session_id})
            tracing.Stretch("wait", since=received.delivery.received).end()
        yield


def invoking(executor: Executor, turn: Turn) -> AbstractContextManager[Span]:
    """Open the span of an attempt for the block."""
    if not tracing.recording():
        return tracing.NOT_TRACED
    target = executor.target
    is_workflow = target.type is SessionType.WORKFLOW
    operation, kind = ("invoke_workflow", "workflow") if is_workflow else ("invoke_agent", "agent")
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": operation,
        f"gen_ai.{kind}.name": executor.name,
        "gen_ai.conversation.id": turn.session_id,
        "teamturn.run.id": turn.run_id,
        "teamturn.target": str(target),
        "teamturn.attempt": turn.attempt,
    }
    if not is_workflow:
        attributes["gen_ai.agent.id"] = target.id
    if executor.model_name is not None:
        provider, _, model = executor.model_name.partition(":")
        attributes |= {"gen_ai.provider.name": provider, "gen_ai.request.model": model}
    return tracing.span(f"{operation} {target.id}", attributes)


def attempted(invoked: Span, turn: Turn, outcome: Outcome) -> None:
    """Tell how an attempt ended. Its tokens are named as pydantic-ai names those of a run: they are its parts' sums."""
    if not invoked.is_recording():
        return
    invoked.set_attributes(
        {
            "teamturn.status": outcome.status.value,
            "gen_ai.aggregated_usage.input_tokens": turn.usage.input_tokens,
            "gen_ai.aggregated_usage.output_tokens": turn.usage.output_tokens,
        }
    )
    if outcome.status is RunStatus.ERROR and outcome.error is not None:
        tracing.failed(outcome.error.code.value, invoked)


def answered(reply: RunReply) -> None:
    """Tell how the request was answered whose span the running code is in."""
    if not tracing.recording():
        return
    tracing.note({"teamturn.status": reply.status.value, "teamturn.attempt": reply.attempt})
    if reply.turn is not None:
        tracing.note({"teamturn.turn": reply.turn})
    if reply.error is not None and reply.status is not RunStatus.CANCELLED:
        tracing.failed(reply.error.code.value)
